"""Dropout: how much it drops, that it keeps the mean, and where it is the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.dropout import Dropout, dropout

KEY = jax.random.key(0)


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.5, 0.9, 0.999])
def test_the_share_dropped_and_the_mean(rate):
    x = jnp.ones((64, 50, 101))
    out = np.asarray(dropout(KEY, x, rate=rate))
    share = min(round(rate * 256), 255) / 256
    np.testing.assert_allclose((out == 0).mean(), share, atol=4e-3)
    np.testing.assert_allclose(out[out != 0], 1 / (1 - share), rtol=1e-6)
    np.testing.assert_allclose(out.mean(), 1.0, atol=0.3 if rate > 0.99 else 0.02)


@pytest.mark.parametrize("shape", [(3,), (2, 1), (2, 5, 7), (4, 8)])
def test_it_equals_its_plain_form(shape):
    x = jax.random.normal(jax.random.key(1), shape)
    words = np.asarray(jax.random.bits(KEY, (*shape[:-1], -(-shape[-1] // 4))))
    bits = words[..., None] >> np.array([0, 8, 16, 24], np.uint32) & 0xFF
    is_kept = bits.reshape(*shape[:-1], -1)[..., : shape[-1]] >= 77
    expected = np.where(is_kept, x * (256 / 179), 0)
    np.testing.assert_allclose(dropout(KEY, x, rate=0.3), expected, rtol=1e-6)


def test_every_byte_of_a_word_decides_by_itself():
    out = np.asarray(dropout(KEY, jnp.ones((20_000, 4)), rate=0.5)) > 0
    correlation = np.corrcoef(out.T)
    np.testing.assert_allclose(correlation, np.eye(4), atol=0.03)
    np.testing.assert_allclose(out.mean(axis=0), 0.5, atol=0.02)


def test_the_gradient_is_dropped_with_the_value():
    x = jax.random.normal(jax.random.key(1), (8, 33))
    out, pullback = jax.vjp(lambda x: dropout(KEY, x, rate=0.4), x)
    (gradient,) = pullback(jnp.ones_like(x))
    np.testing.assert_array_equal(np.asarray(gradient) == 0, np.asarray(out) == 0)
    np.testing.assert_allclose(gradient[out != 0], 256 / (256 - 102), rtol=1e-6)


def test_other_keys_drop_others_and_the_dtype_stays():
    x = jnp.ones((16, 64), jnp.bfloat16)
    first = dropout(KEY, x, rate=0.5)
    assert first.dtype == jnp.bfloat16
    np.testing.assert_array_equal(first, dropout(KEY, x, rate=0.5))
    assert (first != dropout(jax.random.key(1), x, rate=0.5)).mean() > 0.4


@pytest.mark.parametrize("rate", [-0.1, 1.0, 2.0])
def test_rates_out_of_range(rate):
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\), got"):
        dropout(KEY, jnp.ones(3), rate=rate)


def test_the_module_rests_when_it_is_deterministic():
    x = jnp.ones((4, 16))
    rngs = {"dropout": KEY}
    module = Dropout(0.5)
    np.testing.assert_array_equal(module.apply({}, x, deterministic=True), x)
    assert (module.apply({}, x, deterministic=False, rngs=rngs) == 0).any()
    np.testing.assert_array_equal(Dropout(0.0, deterministic=False).apply({}, x), x)
