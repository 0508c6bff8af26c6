"""Muon and groups of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from train_jax.learning import muon, optim

CONSTANT = optax.constant_schedule(1.0)
# The quintic iteration of Muon's authors.
A, B, C = 3.4445, -4.7750, 2.0315


def _orthogonalize(matrix: np.ndarray, steps: int) -> np.ndarray:
    x = matrix / np.linalg.norm(matrix)
    for _ in range(steps):
        xxt = x @ x.T
        x = A * x + (B * xxt + C * xxt @ xxt) @ x
    return x


def _kernel(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(6, 4), (3, 3, 2, 5), (2, 6, 4)])
def test_the_update_is_the_orthogonalised_momentum(shape):
    momentum, rate, steps = 0.6, 0.24, 3
    rule = optim.make_update_rule(
        "muon",
        CONSTANT,
        learning_rate=rate,
        momentum=momentum,
        ns_steps=steps,
        consistent_rms=None,
        keep_norm=True,
    )
    params = {"kernel": jnp.asarray(_kernel(shape))}
    state = rule.init(params)
    weight = np.asarray(params["kernel"], np.float64)
    buffer = np.zeros(shape)
    for step in range(1, 4):
        gradient = _kernel(shape, seed=step)
        updates, state = rule.update({"kernel": jnp.asarray(gradient)}, state, params)
        params = optax.apply_updates(params, updates)
        # Nesterov's momentum, both parts without the bias towards 0 of the start.
        buffer = momentum * buffer + (1 - momentum) * gradient
        ahead = momentum * buffer / (1 - momentum ** (step + 1))
        ahead += (1 - momentum) * gradient / (1 - momentum**step)
        matrices = ahead.reshape(-1, *shape[-2:] if len(shape) == 3 else (shape[-1],))
        matrices = matrices if len(shape) == 3 else matrices[None]
        update = np.stack([_orthogonalize(m.T, steps).T for m in matrices])
        axes = (1, 2) if len(shape) == 3 else None
        norms = np.sqrt(np.sum(weight**2, axis=axes, keepdims=True))
        weight *= shape[-1] ** 0.5 / norms
        weight -= rate * update.reshape(shape)
    np.testing.assert_allclose(params["kernel"], weight, rtol=2e-4, atol=2e-5)


def test_the_rest_is_updated_by_adam():
    params = {"bias": jnp.ones(3)}
    rule = optim.make_update_rule("muon", CONSTANT, learning_rate=0.1)
    adam = optax.adam(0.1)
    gradient = {"bias": jnp.array([1.0, -2.0, 0.5])}
    ours, _ = rule.update(gradient, rule.init(params), params)
    theirs, _ = adam.update(gradient, adam.init(params), params)
    np.testing.assert_allclose(ours["bias"], theirs["bias"], rtol=1e-6)


@pytest.mark.parametrize("shape", [(48, 16), (16, 48), (3, 3, 8, 16), (3, 48, 16)])
def test_updates_have_about_the_root_mean_square_of_adam(shape):
    rule = muon.muon(consistent_rms=0.2)
    params = {"kernel": jnp.asarray(_kernel(shape))}
    updates, _ = rule.update(params, rule.init(params), params)
    rms = np.sqrt(np.mean(np.square(updates["kernel"])))
    assert 0.15 < rms < 0.25


def test_a_kernel_of_zeros_keeps_its_norm():
    params = {"kernel": jnp.zeros((2, 2))}
    rule = muon.keep_norm()
    updates, _ = rule.update(params, rule.init(params), params)
    np.testing.assert_array_equal(updates["kernel"], 0)


PARAMS = {"head": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "cls": jnp.ones(2)}
HALF = jax.tree.map(lambda x: x / 2, PARAMS)


def test_each_group_has_its_own_rule():
    def sgd(rate):
        return optim.make_update_rule("sgd", CONSTANT, learning_rate=rate, momentum=0.0)

    tx = optim.make_optimizer(sgd(1.0), groups={"bias$": sgd(0.1), "^cls": sgd(0.0)})
    updates, state = tx.update(HALF, tx.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["head"]["kernel"], -0.5)
    np.testing.assert_allclose(updates["head"]["bias"], -0.05)
    np.testing.assert_array_equal(updates["cls"], 0)
    assert optim.last_learning_rate(state) == 1.0


def test_a_norm_is_clipped_over_all_groups():
    rule = optim.make_update_rule("sgd", CONSTANT, learning_rate=1.0, momentum=0.0)
    tx = optim.make_optimizer(rule, clip_norm=0.01, groups={"cls": rule})
    updates, _ = tx.update(HALF, tx.init(PARAMS), PARAMS)
    np.testing.assert_allclose(optax.tree.norm(updates), 0.01, rtol=1e-5)


def test_the_gradient_of_frozen_parameters_is_neither_clipped_nor_computed():
    rule = optim.make_update_rule("sgd", CONSTANT, learning_rate=1.0, momentum=0.0)
    tx = optim.make_optimizer(rule, clip_norm=0.01, frozen=["^head"])
    alone = optim.make_optimizer(rule, clip_norm=0.01)
    state = tx.init(PARAMS)
    updates, _ = tx.update(HALF, state, PARAMS)
    cls = {"cls": PARAMS["cls"]}
    expected, _ = alone.update({"cls": HALF["cls"]}, alone.init(cls), cls)
    np.testing.assert_array_equal(updates["cls"], expected["cls"])
    np.testing.assert_array_equal(updates["head"]["kernel"], 0)

    def update(kernel, bias, cls):
        grads = {"head": {"kernel": kernel, "bias": bias}, "cls": cls}
        return tx.update(grads, state, PARAMS)[0]["cls"]

    gradients = (HALF["head"]["kernel"], HALF["head"]["bias"], HALF["cls"])
    program = jax.jit(update).lower(*gradients).as_text()
    signature = next(line for line in program.splitlines() if "@main" in line)
    # A jitted function drops the arguments that nothing depends on.
    assert signature.count("%arg") == 1
