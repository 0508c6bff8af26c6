"""Metrics over a whole split: every example counts once."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from train_jax.data import Split
from train_jax.data.loader import Batches, load_batches
from train_jax.devices import sharding


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Results of R runs on a split of M examples.

    Attributes:
        loss_R: mean cross-entropy, nats.
        accuracy_R: share of examples that are right, in [0, 1]; NaN where the loss is
            not finite.
        output_RM: the model's answer to each example, see `Task.make_eval_step`.
    """

    loss_R: np.ndarray
    accuracy_R: np.ndarray
    output_RM: np.ndarray


class Evaluator:
    """Evaluates models on splits; one compiled step serves all splits."""

    def __init__(
        self,
        eval_step: Callable[..., Any],
        *,
        batch_size: int,
        mesh: Mesh,
        jit: Callable[..., Any] = jax.jit,
    ):
        """Make the step; it is compiled when it is first used.

        Args:
            eval_step: (variables, examples) → (loss_RB, hit_RB, output_RB).
            batch_size: at most so many examples at once; rounded up to a multiple of
                the number of devices.
            mesh: the devices.
            jit: compiles the step, see `policy.jit_of_model`.
        """
        num_devices = mesh.shape[sharding.DATA_AXIS]
        self._batch_size = math.ceil(batch_size / num_devices) * num_devices
        self._batch_sharding = sharding.batch_sharding(mesh)
        self._eval_step = jit(eval_step, out_shardings=sharding.replicated(mesh))

    def __call__(self, variables: Any, split: Split) -> Evaluation:
        """Evaluate the models on a split.

        The last batch is padded with zeros, whose results are cut off.

        Args:
            variables: the models' variables.
            split: the examples.
        """
        count, size = len(split), self._batch_size
        rows = sharding.local_rows(size, self._batch_sharding)
        batches = Batches(
            split.examples,
            functools.partial(_indices_of, size, count, rows),
            math.ceil(count / size),
        )
        loaded = iter(batches)
        if split.is_streamed:
            loaded = load_batches(batches)
        outputs = []
        for *examples, _ in loaded:
            padded = tuple(_pad(x, len(rows)) for x in examples)
            batch = sharding.put_rows(padded, size, self._batch_sharding)
            outputs.append(self._eval_step(variables, batch))
            # So that the devices hold two batches and their results, not the split's.
            outputs[-2:-1] = jax.device_get(outputs[-2:-1])
        loss_RM, hit_RM, output_RM = jax.tree.map(
            lambda *parts: np.concatenate(parts, axis=1)[:, :count],
            *jax.device_get(outputs),
        )
        loss_R = loss_RM.mean(axis=1, dtype=np.float64)
        return Evaluation(
            loss_R=loss_R,
            accuracy_R=np.where(np.isfinite(loss_R), hit_RM.mean(axis=1), np.nan),
            output_RM=output_RM,
        )


def _indices_of(size: int, count: int, rows: np.ndarray, number: int) -> np.ndarray:
    """List the examples in some rows of a batch, without those beyond the split."""
    index_B = number * size + rows
    return index_B[index_B < count]


def _pad(x: np.ndarray, batch_size: int) -> np.ndarray:
    """Append zeros up to the batch size."""
    return np.pad(x, [(0, batch_size - len(x))] + [(0, 0)] * (x.ndim - 1))
