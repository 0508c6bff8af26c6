"""BatchNorm: the variance of pixels that lie far from zero, its running averages."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from resnet_jax import ResNet
from resnet_jax.batch_norm import (
    BatchNorm,
    _normalize,
    _normalize_batch,
    batch_norm,
    batch_statistics,
)
from tests import modules
from tests.modules import apply, normal

OFFSETS = [0, 10, 300, 2000]


def _expected(x_BHWC: jax.Array, epsilon: float = 1e-5) -> tuple:
    """Mean, variance and normalised pixels in float64."""
    x_BHWC = np.asarray(x_BHWC, np.float64)
    mean_C, var_C = x_BHWC.mean(axis=(0, 1, 2)), x_BHWC.var(axis=(0, 1, 2))
    return mean_C, var_C, (x_BHWC - mean_C) / np.sqrt(var_C + epsilon)


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_shifted_pixels_are_normalised_as_in_float64(offset, dtype):
    x_BHWC = (normal(16, 8, 8, 5) + offset).astype(dtype)
    module = BatchNorm(dtype=dtype)
    variables = module.init(jax.random.key(0), x_BHWC)
    out_BHWC, updated = apply(
        module, variables, x_BHWC, train=True, mutable=("batch_stats",)
    )
    assert out_BHWC.dtype == dtype
    mean_C, var_C, expected_BHWC = _expected(x_BHWC)
    out_BHWC = np.asarray(out_BHWC, np.float64)
    # Of float32 numbers near 2000 the mean itself is only right to 1e-4.
    atol = 0.02 if dtype == jnp.bfloat16 else 2e-6 + 2e-6 * offset
    np.testing.assert_allclose(out_BHWC, expected_BHWC, atol=atol)
    running = updated["batch_stats"]
    np.testing.assert_allclose(running["mean"], 0.1 * mean_C, atol=1e-6, rtol=2e-6)
    np.testing.assert_allclose(running["var"], 0.9 + 0.1 * var_C, rtol=1e-5)


@pytest.mark.parametrize("offset", OFFSETS)
def test_the_gradient_at_shifted_pixels_is_that_in_float64(offset):
    x_BC, weight_BC = normal(64, 5) + offset, normal(64, 5, seed=1)
    scale_C, bias_C = normal(5, seed=2), normal(5, seed=3)

    def gradient(dtype):
        x, scale, bias, weight = (
            jnp.asarray(np.asarray(a, dtype))
            for a in (x_BC, scale_C, bias_C, weight_BC)
        )

        def loss(x, scale, bias):
            return (batch_norm(x, *batch_statistics(x), scale, bias) * weight).sum()

        return jax.grad(loss, (0, 1, 2))(x, scale, bias)

    with jax.enable_x64(True):
        expected = gradient(np.float64)
    for value, wanted in zip(gradient(np.float32), expected, strict=True):
        np.testing.assert_allclose(value, wanted, atol=1e-5 + 1e-6 * offset)


@pytest.mark.parametrize("num_shards", [1, 2])
@pytest.mark.parametrize("order", ["jvp", "vjp", "jvp of vjp", "vjp of vjp"])
def test_derivatives_in_training_are_those_of_the_definition(order, num_shards):
    """Of the output, the mean and the variance, also of second order."""
    with jax.enable_x64(True):
        x_SBC, weight_SBC, scale_C, bias_C, *directions = (
            jnp.asarray(np.asarray(normal(*shape, seed=seed), np.float64))
            for seed, shape in enumerate(
                2 * [(num_shards, 8, 5)] + 2 * [(5,)] + [(num_shards, 8, 5), (5,), (5,)]
            )
        )

        def derivative(normalize):
            def value(x_BC, scale_C, bias_C, weight_BC):
                out_BC, *moments = normalize(x_BC, scale_C, bias_C, 1e-5, "shards")
                return (out_BC**2 * weight_BC).sum() + sum(m @ m**2 for m in moments)

            def total(x_SBC, scale_C, bias_C):
                axes = (0, None, None, 0)
                each = jax.vmap(value, axes, axis_name="shards")
                return each(x_SBC, scale_C, bias_C, weight_SBC).sum()

            def directional(*args):
                gradients = jax.grad(total, (0, 1, 2))(*args)
                return sum(
                    (g * d).sum() for g, d in zip(gradients, directions, strict=True)
                )

            args = x_SBC, scale_C, bias_C
            return {
                "jvp": lambda: jax.jvp(total, args, tuple(directions)),
                "vjp": lambda: jax.grad(total, (0, 1, 2))(*args),
                "jvp of vjp": lambda: jax.jvp(directional, args, tuple(directions)),
                "vjp of vjp": lambda: jax.grad(directional, (0, 1, 2))(*args),
            }[order]()

        actual, expected = map(derivative, (_normalize_batch, _normalize))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9)
    jax.tree.map(close, actual, expected)


@pytest.mark.parametrize(
    "module", [BatchNorm(axis_name="shards"), ResNet(3, (1,), width=4)]
)
def test_a_named_axis_shares_the_statistics(module):
    """Of each shard alone they would differ."""
    if isinstance(module, ResNet):
        module = module.clone(axis_name="shards")
    x_BHWC = normal(8, 4, 4, 3) * jnp.arange(8.0)[:, None, None, None]
    variables = module.init(jax.random.key(0), x_BHWC, train=True)

    def train(module, x_BHWC):
        how = {"train": True, "mutable": ["batch_stats"]}
        return module.apply(variables, x_BHWC, **how)

    expected = train(module.clone(axis_name=None), x_BHWC)
    mesh = jax.make_mesh((4,), ("shards",), (AxisType.Auto,))
    sharded = jax.shard_map(
        functools.partial(train, module),
        mesh=mesh,
        in_specs=PartitionSpec("shards"),
        out_specs=(PartitionSpec("shards"), PartitionSpec()),
    )
    out, updated = jax.jit(sharded)(x_BHWC)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        (out, updated),
        tuple(expected),
    )


def test_evaluation_normalises_by_the_running_statistics():
    module = BatchNorm()
    x_BHWC = normal(4, 3, 3, 5)
    variables = modules.variables(module, x_BHWC)
    running, params = variables["batch_stats"], variables["params"]
    expected = (x_BHWC - np.asarray(running["mean"])[None, None, None]) / np.sqrt(
        np.asarray(running["var"]) + 1e-5
    )[None, None, None]
    expected = expected * params["scale"][None, None, None]
    expected = expected + params["bias"][None, None, None]
    out_BHWC = apply(module, variables, x_BHWC)
    np.testing.assert_allclose(out_BHWC, expected, atol=1e-5)


@pytest.mark.parametrize("epsilon", [0.0, -1e-5, float("nan")])
def test_epsilon_is_positive(epsilon):
    one = jnp.ones(4)
    with pytest.raises(ValueError, match=r"^epsilon must be greater than 0, got "):
        batch_norm(jnp.ones((2, 4)), one, one, one, one, epsilon=epsilon)


@pytest.mark.parametrize("momentum", [-0.1, 1.1, float("nan")])
def test_momentum_is_a_share(momentum):
    with pytest.raises(ValueError, match=r"^momentum must be in \[0, 1\], got "):
        modules.shapes(BatchNorm(momentum=momentum), 2, 4)


def test_nothing_has_no_statistics():
    message = r"^x must have at least 1 value a channel, got shape \(0, 4\)"
    with pytest.raises(ValueError, match=message):
        batch_statistics(jnp.ones((0, 4)))
