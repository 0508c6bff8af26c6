"""What the trainer asks of a task."""

import pathlib
from collections.abc import Callable
from typing import Any, Protocol

import flax.linen as nn
import jax
import numpy as np

from train_jax.learning.step import Batch

Array = jax.Array
EvalStep = Callable[..., tuple[Array, Array, Array]]


class Task(Protocol):
    """One kind of problem: which models answer it, and how well."""

    @property
    def models(self) -> tuple[str, ...]:
        """The names of the models that can be trained on it."""
        ...

    @property
    def model_fields(self) -> dict[str, Any]:
        """The fields of such a model that follow from the data."""
        ...

    def inputs(self) -> tuple[Array, ...]:
        """Make a batch of one blank example, as the model is called with it."""
        ...

    def make_batch(self, key: Array, *examples: Array) -> Batch:
        """Turn raw examples into what a training step takes."""
        ...

    def make_eval_step(self, model: nn.Module) -> EvalStep:
        """Make the pure function (variables, *examples) → (loss_B, hit_B, output_B).

        It tells of each example the loss in nats, whether the answer is right, and
        the answer itself.
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
        """Draw what the model makes of a split into PNG files.

        Args:
            model: the module.
            variables: its variables.
            split: the examples.
            output_M: the answers of the eval step.
            folder: the files go there.
        """
        ...
