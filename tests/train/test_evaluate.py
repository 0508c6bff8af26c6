"""Evaluation counts every example exactly once."""

import weakref

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train_jax.data import ImageSplit
from train_jax.run.evaluator import Evaluator
from train_jax.run.runs import Runs
from train_jax.run.setup import make_evaluator
from train_jax.tasks import Classification


class Pixels(nn.Module):
    """The image's first pixels are its logits."""

    @nn.compact
    def __call__(self, image_BHWC, *, train: bool = False):
        return image_BHWC.reshape(len(image_BHWC), -1)[:, :3]


def _split(count):
    image_BHWC = np.random.default_rng(0).integers(0, 256, (count, 2, 2, 1))
    label_B = np.random.default_rng(1).integers(0, 3, count).astype(np.int32)
    return ImageSplit(image_BHWC.astype(np.uint8), label_B, ("a", "b", "c"))


def _make_evaluator(model) -> Evaluator:
    """An evaluator of a model of 2×2 images and three classes, 16 at a time."""
    task = Classification((2, 2, 1), ("a", "b", "c"), mean=(0.0,), std=(0.1,))
    return make_evaluator(model, task, Runs.combine([0], {}), batch_size=10)


@pytest.mark.parametrize("count", [1, 15, 16, 17, 100])
def test_evaluate_counts_every_example_once(count):
    split = _split(count)
    result = _make_evaluator(Pixels())({}, split)
    logits_BY = split.image_BHWC.reshape(count, -1)[:, :3] / 255 / 0.1
    exponential_BY = np.exp(logits_BY - logits_BY.max(axis=1, keepdims=True))
    probability_BY = exponential_BY / exponential_BY.sum(axis=1, keepdims=True)
    loss = -np.log(probability_BY[np.arange(count), split.label_B]).mean()
    accuracy = (logits_BY.argmax(axis=1) == split.label_B).mean()
    np.testing.assert_allclose(result.loss_R, [loss], rtol=1e-5)
    assert result.accuracy_R == [accuracy]
    np.testing.assert_allclose(result.output_RM, [probability_BY], atol=1e-5)


def test_devices_hold_the_results_of_few_batches():
    evaluator = _make_evaluator(Pixels())
    step, outputs, numbers_alive = evaluator._eval_step, [], []

    def watch(variables, batch):
        output = step(variables, batch)
        outputs.extend(map(weakref.ref, jax.tree.leaves(output)))
        numbers_alive.append(sum(it() is not None for it in outputs))
        return output

    evaluator._eval_step = watch
    evaluator({}, _split(100))
    assert len(outputs) == 3 * 7  # loss, hit and output of each batch
    assert max(numbers_alive) <= 3 * 3


def test_views_are_normalised_as_training_images_are():
    split, mean = _split(5), (0.1, 0.2, 0.3, 0.4)  # of each pixel
    task = Classification((2, 2, 1), ("a", "b", "c"), mean=mean, std=(0.1,))
    step = task.make_eval_step(Pixels(), "flip")
    _, _, probability_BY = step({}, split.image_BHWC, jnp.asarray(split.label_B))
    views = [split.image_BHWC, split.image_BHWC[:, :, ::-1]]
    logits = [((v / 255).reshape(5, -1) - mean)[:, :3] / 0.1 for v in views]
    exponential_BY = np.exp(sum(logits) / 2)
    expected_BY = exponential_BY / exponential_BY.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probability_BY, expected_BY, rtol=1e-4)


def test_evaluate_traces_once_for_all_splits():
    traces = []

    class Counted(Pixels):
        @nn.compact
        def __call__(self, image_BHWC, *, train: bool = False):
            traces.append(image_BHWC.shape)
            return jnp.zeros((len(image_BHWC), 3))

    evaluator = _make_evaluator(Counted())
    for count in (5, 16, 33):
        evaluator({}, _split(count))
    assert traces == [(16, 2, 2, 1)]
