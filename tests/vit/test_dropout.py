"""Dropout: how much it drops, that it keeps the mean, and where it is the same."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import EncoderBlock, MultiHeadAttention
from vit_jax.dropout import Dropout, dropout, threefry_2x32

KEY = jax.random.key(0)


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.5, 0.9, 0.999])
def test_the_share_dropped_and_the_mean(rate):
    x = jnp.ones((64, 50, 101))
    out = np.asarray(dropout(KEY, x, rate=rate))
    share = min(round(rate * 256), 255) / 256
    np.testing.assert_allclose((out == 0).mean(), share, atol=4e-3)
    np.testing.assert_allclose(out[out != 0], 1 / (1 - share), rtol=1e-6)
    np.testing.assert_allclose(out.mean(), 1.0, atol=0.3 if rate > 0.99 else 0.02)


def test_the_cipher_is_that_of_jax():
    key = jax.random.bits(jax.random.key(3), (2,))
    x, y = jax.random.bits(jax.random.key(4), (2, 1000))
    expected = jax.extend.random.threefry_2x32(key, jnp.concatenate([x, y]))
    found = jnp.concatenate(threefry_2x32((key[0], key[1]), x, y))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shape", [(3,), (2, 1), (2, 5, 7), (4, 8), (3, 4, 8)])
def test_it_equals_its_plain_form(shape):
    x = jax.random.normal(jax.random.key(1), shape)
    seed = jax.random.bits(KEY, (2,))
    expected = []
    for example in range(shape[0]):
        count = np.arange(-(-x[0].size // 8), dtype=np.uint32)
        pairs = np.concatenate([np.full_like(count, example), count])
        words = np.asarray(jax.extend.random.threefry_2x32(seed, pairs))
        bits = words[:, None] >> np.array([0, 8, 16, 24], np.uint32) & 0xFF
        is_kept = bits.reshape(-1)[: x[0].size].reshape(shape[1:]) >= 77
        expected.append(np.where(is_kept, x[example] * (256 / 179), 0))
    np.testing.assert_allclose(dropout(KEY, x, rate=0.3), expected, rtol=1e-6)


def test_examples_and_elements_are_dropped_independently():
    out = np.asarray(dropout(KEY, jnp.ones((20_000, 20)), rate=0.5)) > 0
    np.testing.assert_allclose(np.corrcoef(out.T), np.eye(20), atol=0.04)
    np.testing.assert_allclose(out.mean(axis=0), 0.5, atol=0.02)
    out = np.asarray(dropout(KEY, jnp.ones((20, 20_000)), rate=0.5)) > 0
    np.testing.assert_allclose(np.corrcoef(out), np.eye(20), atol=0.04)
    np.testing.assert_allclose(out.mean(axis=1), 0.5, atol=0.02)


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
    out = module.apply({}, x, deterministic=False, rngs=rngs)
    assert (np.asarray(out) == 0).any()
    np.testing.assert_array_equal(Dropout(0.0, deterministic=False).apply({}, x), x)


@pytest.mark.parametrize(
    "module",
    [
        Dropout(1.5),
        MultiHeadAttention(num_heads=2, dropout_rate=1.5, implementation="xla"),
        EncoderBlock(num_heads=2, mlp_size=8, dropout_rate=1.5),
        EncoderBlock(num_heads=2, mlp_size=8, attention_dropout_rate=1.5),
    ],
    ids=["dropout", "attention", "block", "block's attention"],
)
def test_rates_are_checked_also_where_nothing_is_dropped(module):
    inputs = {"deterministic": True} if isinstance(module, Dropout) else {}
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\), got 1.5"):
        module.init(KEY, jnp.ones((2, 3, 4)), **inputs)
