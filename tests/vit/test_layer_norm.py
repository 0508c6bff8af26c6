"""LayerNorm: the variance of tokens that lie far from zero, and what it rejects."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import modules
from tests.modules import apply, normal
from vit_jax import Encoder
from vit_jax.layers import LayerNorm, layer_norm

OFFSETS = [0, 10, 300, 2000]


def _expected(x_BTD: jax.Array, epsilon: float = 1e-6) -> np.ndarray:
    """Normalise in float64."""
    x_BTD = np.asarray(x_BTD, np.float64)
    mean_BT1 = x_BTD.mean(axis=-1, keepdims=True)
    var_BT1 = x_BTD.var(axis=-1, keepdims=True)
    return (x_BTD - mean_BT1) / np.sqrt(var_BT1 + epsilon)


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_shifted_tokens_are_normalised_as_in_float64(offset, dtype):
    x_BTD = (normal(64, 1, 192) + offset).astype(dtype)
    encoder = Encoder(depth=0, num_heads=1, mlp_dim=8, dtype=dtype)
    variables = encoder.init(jax.random.key(0), x_BTD)
    out_BTD = apply(encoder, variables, x_BTD)
    assert out_BTD.dtype == dtype
    # Of float32 numbers near 2000 the mean itself is only right to 1e-4.
    atol = 0.02 if dtype == jnp.bfloat16 else 1e-6 + 5e-7 * offset
    out_BTD = np.asarray(out_BTD, np.float64)
    np.testing.assert_allclose(out_BTD, _expected(x_BTD), atol=atol)
    if dtype == jnp.float32:
        np.testing.assert_allclose(out_BTD.var(axis=-1), 1, atol=1e-4)


def test_bfloat16_input_is_normalised_after_it_is_rounded():
    x_BTD = normal(64, 1, 192) + 300
    encoder = Encoder(depth=0, num_heads=1, mlp_dim=8, dtype=jnp.bfloat16)
    variables = encoder.init(jax.random.key(0), x_BTD)
    expected = _expected(x_BTD.astype(jnp.bfloat16))
    out_BTD = np.asarray(apply(encoder, variables, x_BTD), np.float64)
    np.testing.assert_allclose(out_BTD, expected, atol=0.02)


@pytest.mark.parametrize("offset", OFFSETS)
def test_the_gradient_at_shifted_tokens_is_that_in_float64(offset):
    x_BTD, weight_BTD = normal(4, 3, 64) + offset, normal(4, 3, 64, seed=1)
    scale_D, bias_D = normal(64, seed=2), normal(64, seed=3)

    def gradient(dtype):
        arrays = (jnp.asarray(np.asarray(a, dtype)) for a in (x_BTD, scale_D, bias_D))
        weight = jnp.asarray(np.asarray(weight_BTD, dtype))
        return jax.grad(lambda *a: (layer_norm(*a) * weight).sum(), (0, 1, 2))(*arrays)

    with jax.enable_x64(True):
        expected = gradient(np.float64)
    for value, wanted in zip(gradient(np.float32), expected, strict=True):
        np.testing.assert_allclose(value, wanted, atol=1e-5 + 1e-6 * offset)


def test_scale_and_bias_follow_on_the_normalised_input():
    module = LayerNorm()
    x_BTD = normal(2, 3, 8)
    variables = modules.variables(module, x_BTD)
    scale, bias = (np.asarray(variables["params"][name]) for name in ("scale", "bias"))
    out_BTD = module.apply(variables, x_BTD)
    np.testing.assert_allclose(out_BTD, _expected(x_BTD) * scale + bias, atol=1e-5)


@pytest.mark.parametrize("epsilon", [0.0, -1e-6, float("nan")])
def test_epsilon_is_positive(epsilon):
    x, one = jnp.ones((2, 4)), jnp.ones(4)
    with pytest.raises(ValueError, match=r"^epsilon must be greater than 0, got "):
        layer_norm(x, one, one, epsilon=epsilon)
    encoder = Encoder(depth=1, num_heads=1, mlp_dim=8, norm_epsilon=epsilon)
    with pytest.raises(ValueError, match=r"^norm_epsilon must be greater than 0, got"):
        modules.shapes(encoder, 2, 3, 4)


def test_scale_and_bias_have_the_width_of_the_tokens():
    with pytest.raises(AssertionError, match="shape"):
        layer_norm(jnp.ones((2, 4)), jnp.ones(4), jnp.ones(3))
