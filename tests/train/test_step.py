"""The training step: what it computes, and that it is the same however it is run."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resnet_jax import ResNet, conv_general_dilated
from tests.train.tiny import RESNET, SMALL_RESNET, losses_of_steps, make_tiny
from train_jax.devices import policy
from train_jax.learning.batch import epoch_order
from train_jax.learning.state import TrainState
from train_jax.learning.step import (
    cross_entropy,
    loss_of_batch,
    make_next_step,
    make_train_step,
)


class Linear(nn.Module):
    """Softmax regression."""

    @nn.compact
    def __call__(self, image_BHWC, *, train: bool = False):
        return nn.Dense(3)(image_BHWC.reshape(len(image_BHWC), -1))


def ignore(*args, **kwargs):
    """Show no progress."""


def _make_step(model, tx, **options):
    loss = functools.partial(loss_of_batch, model)
    return make_train_step(loss, tx, **options)


def _problem(batch=8):
    image = jax.random.normal(jax.random.key(0), (batch, 2, 2, 1))
    target = jax.nn.one_hot(jnp.arange(batch) % 3, 3)
    model, tx = Linear(), optax.sgd(0.5)
    variables = model.init(jax.random.key(1), image)
    return model, tx, TrainState.create(variables, tx), ((image,), target)


def test_cross_entropy_of_even_logits_is_log_of_classes():
    losses = cross_entropy(jnp.zeros((2, 5)), jax.nn.one_hot(jnp.array([0, 3]), 5))
    np.testing.assert_allclose(losses, np.log(5), rtol=1e-6)


def test_finite_steps_are_those_before_the_first_that_is_not():
    losses = jnp.array([2.0, 1.0, jnp.inf, 1.0])

    def train_step(state, batch, key):
        metrics = {"loss": losses[state.step], "accuracy": jnp.ones(())}
        return state.replace(step=state.step + 1), metrics

    def next_batch(step, examples, index, key):
        return examples, key

    next_step = make_next_step(train_step, next_batch, steps_per_epoch=4)
    _, _, state, _ = _problem()
    counts = []
    for _ in losses:
        examples = (jnp.zeros((32, 1)),)
        state = next_step(state, examples, jnp.arange(32), jax.random.key(0))
        counts.append(int(state.finite_steps))
    assert counts == [1, 2, 2, 2]


def test_train_step_is_gradient_descent_on_the_mean_loss():
    model, tx, state, batch = _problem()
    (image,), target = batch
    new, metrics = _make_step(model, tx)(state, batch, jax.random.key(2))

    def loss(params):
        return cross_entropy(model.apply({"params": params}, image), target).mean()

    value, grads = jax.value_and_grad(loss)(state.params)
    expected = jax.tree.map(lambda p, g: p - 0.5 * g, state.params, grads)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), new.params, expected
    )
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-6)
    assert int(new.step) == 1


def test_label_smoothing_spreads_the_target():
    model, tx, state, batch = _problem()
    (image,), target = batch
    state = state.replace(label_smoothing=jnp.float32(0.3))
    _, metrics = _make_step(model, tx)(state, batch, jax.random.key(2))
    logits = model.apply({"params": state.params}, image)
    expected = cross_entropy(logits, 0.7 * target + 0.1).mean()
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_equals_the_whole_batch(parts):
    model, tx, state, batch = _problem()
    key = jax.random.key(2)
    whole, whole_metrics = _make_step(model, tx)(state, batch, key)
    step = _make_step(model, tx, accumulation_steps=parts)
    summed, metrics = step(state, batch, key)
    chex.assert_trees_all_close(whole.params, summed.params, atol=1e-6)
    chex.assert_trees_all_close(whole_metrics, metrics, atol=1e-6)


def test_ema_follows_the_parameters():
    model, tx, state, batch = _problem()
    state = TrainState.create({"params": state.params}, tx, ema_decay=0.5)
    step = _make_step(model, tx)
    average = state.params
    for i in range(20):
        state, _ = step(state, batch, jax.random.key(i))
        decay = min(0.5, (1 + i) / (10 + i))
        average = jax.tree.map(
            lambda a, p, d=decay: d * a + (1 - d) * p, average, state.params
        )
    chex.assert_trees_all_close(state.ema["params"], average, atol=1e-6)
    assert state.eval_variables is state.ema


def test_ema_averages_the_running_statistics_along():
    model = ResNet(3, stage_sizes=(1,), width=2)
    image_BHWC = jax.random.normal(jax.random.key(0), (8, 4, 4, 1)) + 5
    batch = (image_BHWC,), jax.nn.one_hot(jnp.arange(8) % 3, 3)
    tx = optax.sgd(0.1)
    variables = model.init(jax.random.key(1), image_BHWC)
    state = TrainState.create(variables, tx, ema_decay=0.5)
    step = jax.jit(_make_step(model, tx))
    average = state.batch_stats
    for i in range(4):
        state, _ = step(state, batch, jax.random.key(i))
        decay = min(0.5, (1 + i) / (10 + i))
        average = jax.tree.map(
            lambda a, s, d=decay: d * a + (1 - d) * s, average, state.batch_stats
        )
    assert state.ema is not None
    chex.assert_trees_all_close(state.ema["batch_stats"], average, rtol=1e-5)
    assert state.eval_variables["batch_stats"] is state.ema["batch_stats"]


def test_epoch_order_is_a_new_permutation_each_epoch():
    orders = [np.asarray(epoch_order(jax.random.key(0), e, 100)) for e in range(3)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(100))
    assert not np.array_equal(orders[0], orders[1])
    again = epoch_order(jax.random.key(0), 1, 100)
    np.testing.assert_array_equal(again, orders[1])


@pytest.mark.parametrize(
    ("model", "steps"), [({}, 120), (RESNET, 200)], ids=["vit", "resnet"]
)
def test_overfits_one_batch(model, steps):
    changes = {
        "dataset.train_split": "train[:64]",
        "num_epochs": steps,
        "optimizer.learning_rate": 5e-3,
    }
    parts = make_tiny(model | changes, devices=jax.devices()[:1])
    state, trainer, record = parts.init_state(), parts.trainer, None
    trainer.compile(state)
    for _ in range(trainer.num_epochs):
        state, record = trainer.run(state, ignore)
    assert record is not None
    assert record["train_accuracy"] == [1.0]
    assert record["train_loss"] < 0.1


def test_steps_are_the_same_in_whatever_stretches():
    parts = make_tiny({"model.dropout_rate": 0.1})
    parts.trainer.compile(parts.init_state())
    results = []
    for stretches in ((5,), (1, 1, 3), (2, 3)):
        state = parts.init_state()
        for count in stretches:
            state = parts.trainer.take_steps(count, state, state.steps_done)
        results.append(state)
    assert int(results[0].step) == 5
    chex.assert_trees_all_equal(*results)


def test_one_trace_serves_all_steps():
    traces = []

    class Counting(nn.Module):
        inner: nn.Module

        @nn.compact
        def __call__(self, image_BHWC, *, train: bool = False):
            traces.append(train)
            return self.inner(image_BHWC, train=train)

    parts = make_tiny(model=Counting(make_tiny().model))
    state = parts.init_state()
    traces.clear()
    parts.trainer.compile(state)
    for _ in range(2):
        state, _ = parts.trainer.run(state, ignore)
    assert traces == [True]


def test_bfloat16_keeps_the_parameters_in_float32():
    # As on a GPU or TPU: a CPU computes in float32, but for some products.
    parts = make_tiny(model=make_tiny().model.clone(dtype=jnp.bfloat16))
    state = parts.init_state()
    parts.trainer.compile(state)
    state, record = parts.trainer.run(state, ignore)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {
        jnp.dtype("float32")
    }
    assert parts.model.dtype == jnp.bfloat16
    assert record is not None and np.isfinite(record["train_loss"]).all()


def test_convolutions_of_a_cpu_train_like_those_of_xla():
    xla = policy.adapt_model(SMALL_RESNET)  # on eight devices
    assert xla.conv_general_dilated is jax.lax.conv_general_dilated
    cpu = policy.adapt_model(SMALL_RESNET, devices=jax.devices()[:1])
    assert cpu.conv_general_dilated is conv_general_dilated
    losses = [
        losses_of_steps(make_tiny(RESNET, has_noise=True, model=model))[0]
        for model in (cpu, xla)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-4)
