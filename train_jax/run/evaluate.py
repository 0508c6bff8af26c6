"""Exact metrics over a whole split: every example counts once."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from train_jax.data import ImageSplit, SequenceSplit
from train_jax.devices import compiler, sharding
from train_jax.run.experiment import Experiment


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What the models of R runs make of a split.

    Attributes:
        loss_R: mean cross-entropy, nats.
        accuracy_R: share of examples answered rightly, in [0, 1]; NaN where the loss is
            not finite.
        output_RM: the answer to each example, see the task.
    """

    loss_R: np.ndarray
    accuracy_R: np.ndarray
    output_RM: np.ndarray


class Evaluator:
    """Evaluates an experiment's models; one compiled step serves all splits."""

    def __init__(self, experiment: Experiment):
        """Make the step; it is compiled when it is first used."""
        self._runs = experiment.runs
        self._batch_sharding = sharding.batch_sharding(experiment.mesh)
        num_devices = experiment.mesh.shape[sharding.DATA_AXIS]
        # A larger batch would be filled up with nothing but zeros.
        longest = max(len(experiment.val), len(experiment.test))
        size = min(experiment.config.eval_batch_size, longest)
        self._batch_size = math.ceil(size / num_devices) * num_devices
        eval_step = experiment.task.make_eval_step(experiment.model)
        self._eval_step = compiler.jit(
            experiment.runs.vmap(
                lambda variables, examples: eval_step(variables, *examples),
                in_axes=(0, None),
            ),
            out_shardings=sharding.replicated(experiment.mesh),
        )

    def __call__(self, variables: Any, split: ImageSplit | SequenceSplit) -> Evaluation:
        """Run the models over a split.

        The last batch is filled up with zeros, whose results are cut off.

        Args:
            variables: the models' variables.
            split: the examples.
        """
        count, size = len(split), self._batch_size
        outputs = []
        for start in range(0, count, size):
            part = split[start : start + size].examples
            filled = tuple(_fill(x, size) for x in part)
            batch = sharding.put(filled, self._batch_sharding)
            outputs.append(self._eval_step(variables, batch))
        outputs = self._runs.rows(jax.device_get(outputs))
        loss_RM, hit_RM, output_RM = jax.tree.map(
            lambda *parts: np.concatenate(parts, axis=1)[:, :count], *outputs
        )
        loss_R = loss_RM.mean(axis=1, dtype=np.float64)
        return Evaluation(
            loss_R=loss_R,
            accuracy_R=np.where(np.isfinite(loss_R), hit_RM.mean(axis=1), np.nan),
            output_RM=output_RM,
        )


def _fill(x: np.ndarray, batch_size: int) -> np.ndarray:
    """Append zeros up to the batch size."""
    return np.pad(x, [(0, batch_size - len(x))] + [(0, 0)] * (x.ndim - 1))
