"""Exact metrics over a whole split: every example counts once."""

import dataclasses
from typing import Any

import jax
import numpy as np

from train_jax.data import Sequences, Split
from train_jax.tasks import EvalStep


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a model makes of a split.

    Attributes:
        loss: mean cross-entropy, nats.
        accuracy: share of examples answered rightly, in [0, 1].
        output_M: the answer to each example, see the task.
    """

    loss: float
    accuracy: float
    output_M: np.ndarray


def evaluate(
    eval_step: EvalStep,
    variables: Any,
    split: Split | Sequences,
    *,
    batch_size: int,
    sharding: Any,
) -> Evaluation:
    """Run the model over a split.

    The last batch is filled up with zeros, whose results are cut off, so that one
    compiled step serves splits of every size.

    Args:
        eval_step: see `Task.make_eval_step`, jitted.
        variables: the model's variables.
        split: the examples.
        batch_size: number of examples in a batch, over all devices.
        sharding: where a batch lies.
    """
    count = len(split)
    outputs = []
    for start in range(0, count, batch_size):
        part = split[start : start + batch_size].examples
        batch = jax.device_put([_fill(x, batch_size) for x in part], sharding)
        outputs.append(eval_step(variables, *batch))
    loss_M, hit_M, output_M = jax.tree.map(
        lambda *parts: np.concatenate(parts)[:count], *jax.device_get(outputs)
    )
    return Evaluation(
        loss=float(loss_M.mean(dtype=np.float64)),
        accuracy=float(hit_M.mean()),
        output_M=output_M,
    )


def _fill(x: np.ndarray, batch_size: int) -> np.ndarray:
    """Append zeros up to the batch size."""
    return np.pad(x, [(0, batch_size - len(x))] + [(0, 0)] * (x.ndim - 1))
