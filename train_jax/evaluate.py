"""Exact metrics over a whole split: every example counts once."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from train_jax.augment import normalize
from train_jax.data import Split
from train_jax.step import cross_entropy

Array = jax.Array
EvalStep = Callable[[Any, Array, Array], tuple[Array, Array]]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a model makes of a split.

    Attributes:
        loss: mean cross-entropy, nats.
        accuracy: share of examples classified rightly, in [0, 1].
        probability_MY: the model's class probabilities for each example, float32.
    """

    loss: float
    accuracy: float
    probability_MY: np.ndarray


def make_eval_step(
    model: nn.Module, *, mean: tuple[float, ...], std: tuple[float, ...]
) -> EvalStep:
    """Make the pure function (variables, image, label) → (loss_B, probability_BY)."""

    def eval_step(variables: Any, image_BHWC: Array, label_B: Array):
        image_BHWC = normalize(image_BHWC, mean=mean, std=std)
        logits_BY: Array = model.apply(variables, image_BHWC, train=False)  # type: ignore
        target_BY = jax.nn.one_hot(label_B, logits_BY.shape[-1])
        return cross_entropy(logits_BY, target_BY), jax.nn.softmax(logits_BY)

    return eval_step


def evaluate(
    eval_step: EvalStep, variables: Any, split: Split, *, batch_size: int, sharding: Any
) -> Evaluation:
    """Run the model over a split.

    The last batch is filled up with zeros, whose results are cut off, so that one
    compiled step serves splits of every size.

    Args:
        eval_step: see `make_eval_step`, jitted.
        variables: the model's variables.
        split: the examples.
        batch_size: number of examples in a batch, over all devices.
        sharding: where a batch lies.
    """
    count = len(split.label_B)
    outputs = []
    for start in range(0, count, batch_size):
        image_BHWC = _fill(split.image_BHWC[start : start + batch_size], batch_size)
        label_B = _fill(split.label_B[start : start + batch_size], batch_size)
        batch = jax.device_put((image_BHWC, label_B), sharding)
        outputs.append(eval_step(variables, *batch))
    loss_M, probability_MY = jax.tree.map(
        lambda *parts: np.concatenate(parts)[:count], *jax.device_get(outputs)
    )
    hits_M = probability_MY.argmax(axis=-1) == split.label_B
    return Evaluation(
        loss=float(loss_M.mean(dtype=np.float64)),
        accuracy=float(hits_M.mean()),
        probability_MY=probability_MY,
    )


def _fill(x: np.ndarray, batch_size: int) -> np.ndarray:
    """Append zeros up to the batch size."""
    return np.pad(x, [(0, batch_size - len(x))] + [(0, 0)] * (x.ndim - 1))
