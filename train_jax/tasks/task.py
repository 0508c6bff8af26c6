"""The interface of a task: batches to train on, an evaluation step, plots."""

import pathlib
from collections.abc import Callable
from typing import Any, Protocol

import flax.linen as nn
import jax
import numpy as np

from train_jax.learning.batch import Batch

Array = jax.Array
EvalStep = Callable[..., tuple[Array, Array, Array]]


class Task(Protocol):
    """A kind of problem, such as image classification."""

    @property
    def model_fields(self) -> dict[str, Any]:
        """The fields of a model that follow from the data."""
        ...

    def inputs(self) -> tuple[Array, ...]:
        """Make a model's inputs for a batch of one example, all zeros."""
        ...

    @property
    def make_batch(self) -> Callable[..., Batch]:
        """The function that makes a batch: the model's inputs, and the target.

        It takes a key, the arrays of the examples, and by name `index_B`, the places of
        the examples in the training split, and `epoch`, a scalar from 0.
        """
        ...

    def make_eval_step(self, model: nn.Module, augmentation: Any = None) -> EvalStep:
        """Make the pure function (variables, *examples) → (loss_B, hit_B, output_B).

        For each example it gives the loss in nats, whether the output is correct, and
        the output itself. With an augmentation, the outputs for several views of an
        example are averaged.
        """
        ...

    def plot(
        self,
        model: nn.Module,
        variables: Any,
        split: Any,
        output_M: np.ndarray,
        folder: pathlib.Path,
    ) -> None:
        """Draw a model's outputs on a split into PNG files.

        Args:
            model: the module.
            variables: its variables.
            split: the examples.
            output_M: the outputs of the evaluation step.
            folder: the files go there.
        """
        ...
