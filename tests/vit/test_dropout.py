"""Dropout: how much it drops, that it keeps the mean, and where it is the same."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import (
    Decoder,
    DecoderBlock,
    EncoderBlock,
    MlpBlock,
    MultiHeadAttention,
)
from vit_jax.layers import Dropout, dropout, dropout_mask

KEY = jax.random.key(0)


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.5, 0.9])
def test_the_share_dropped_and_the_mean(rate):
    x = jnp.ones((64, 50, 101))
    out = np.asarray(dropout(KEY, x, rate=rate))
    np.testing.assert_allclose((out == 0).mean(), rate, atol=4e-3)
    np.testing.assert_allclose(out[out != 0], 1 / (1 - rate), rtol=1e-6)
    np.testing.assert_allclose(out.mean(), 1.0, atol=0.02)


# One of them is below 1/512, half of what 8 bits can tell from 0, and one so near 1
# that 8 bits cannot tell it from 1.
@pytest.mark.parametrize("rate", [3e-4, 1e-3, 0.1, 0.5, 0.999])
def test_the_rate_is_exact(rate):
    num_examples, size = 200_000, 16
    is_kept = np.asarray(dropout_mask(KEY, (num_examples, size), rate=rate))
    dropped_B = size - is_kept.sum(axis=1)
    # The examples are independent, their elements share one threshold: five deviations
    # of the mean over the examples.
    bound = 5 * dropped_B.std() / num_examples**0.5 / size
    assert bound < 0.2 * min(rate, 1 - rate)
    assert abs(dropped_B.mean() / size - rate) < bound
    # Every element of an example, not only their mean.
    deviation = (rate * (1 - rate) / num_examples) ** 0.5
    np.testing.assert_allclose(1 - is_kept.mean(axis=0), rate, atol=5 * deviation)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rate", [1e-3, 0.1, 0.5, 0.999])
def test_the_expectation_is_x(rate, dtype):
    x_BD = jnp.broadcast_to(jnp.asarray([1, -2, 3, 0.5] * 256, dtype), (2000, 1024))
    out_BD = np.asarray(dropout(KEY, x_BD, rate=rate), np.float32)
    ratio_B = (out_BD / np.asarray(x_BD, np.float32)).mean(axis=1)
    bound = 5 * ratio_B.std() / len(ratio_B) ** 0.5
    # One number in bfloat16 is right to 1/512.
    rounded = 2**-9 if dtype == jnp.bfloat16 else 1e-6
    np.testing.assert_allclose(ratio_B.mean(), 1, atol=bound + rounded)


def test_rate_0_returns_the_very_input():
    x = jnp.ones((3, 4))
    assert dropout(KEY, x, rate=0.0) is x


@pytest.mark.parametrize("shape", [(3,), (2, 1), (2, 5, 7), (4, 8), (3, 4, 8)])
@pytest.mark.parametrize("rate", [0.001, 0.3])
def test_it_equals_its_plain_form(rate, shape):
    x = jax.random.normal(jax.random.key(1), shape)
    size = x[0].size
    words = np.asarray(jax.random.bits(KEY, (shape[0], 1 + -(-size // 4))))
    draws, words = words[:, 0], words[:, 1:]
    expected = []
    for example in range(shape[0]):
        bits = words[example][:, None] >> np.array([0, 8, 16, 24], np.uint32) & 0xFF
        threshold = np.floor(256 * rate)
        threshold += draws[example] / 2**32 < 256 * rate - threshold
        is_kept = bits.reshape(-1)[:size].reshape(shape[1:]) >= threshold
        expected.append(np.where(is_kept, x[example] / (1 - rate), 0))
    drop = jax.jit(functools.partial(dropout, KEY, rate=rate))
    np.testing.assert_allclose(drop(x), expected, rtol=1e-5)


@pytest.mark.parametrize("shape", [(), (3,), (5, 7)])
def test_an_example_does_not_depend_on_how_many_there_are(shape):
    x = jax.random.normal(jax.random.key(1), (64, *shape))
    drop = jax.jit(functools.partial(dropout, KEY, rate=0.3))
    out = drop(x)
    for size in (1, 33):
        np.testing.assert_array_equal(drop(x[:size]), out[:size])


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
    np.testing.assert_allclose(gradient[out != 0], 1 / 0.6, rtol=1e-6)


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
        MultiHeadAttention(
            num_heads=2, dropout_rate=1.5, attention_implementation="xla"
        ),
        MlpBlock(8, dropout_rate=1.5),
        EncoderBlock(num_heads=2, mlp_dim=8, dropout_rate=1.5),
        EncoderBlock(num_heads=2, mlp_dim=8, attention_dropout_rate=1.5),
        DecoderBlock(num_heads=2, mlp_dim=8, attention_dropout_rate=1.5),
        Decoder(depth=0, num_heads=2, mlp_dim=8, attention_dropout_rate=1.5),
    ],
)
def test_rates_are_checked_also_where_nothing_is_dropped(module):
    inputs = {"deterministic": True} if isinstance(module, Dropout) else {}
    (field,) = (name for name, value in vars(module).items() if value == 1.5)
    with pytest.raises(ValueError, match=rf"^{field} must be in \[0, 1\), got 1.5"):
        module.init(KEY, jnp.ones((2, 3, 4)), **inputs)
