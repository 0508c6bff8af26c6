"""Dropout at an exact rate, with cheap random numbers: 8 bits an element."""

import dataclasses
import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.dtypes import float32_or_wider

Array = jax.Array


def random_bytes(key: Array, shape: tuple[int, ...]) -> Array:
    """Draw uint8 numbers, four from each word that the generator makes.

    Those of an example, the first axis, do not depend on how many others there are.
    """
    num_examples, size = shape[0], math.prod(shape[1:])
    num_words = -(-size // 4)
    words = jax.random.bits(key, (num_examples, num_words), jnp.uint32)
    numbers = jax.lax.bitcast_convert_type(words, jnp.uint8)
    return numbers.reshape(num_examples, 4 * num_words)[:, :size].reshape(shape)


def draw_kept(key: Array, shape: tuple[int, ...], *, rate: float) -> Array:
    """Draw which elements are kept: each with the probability 1 − `rate`.

    An element is dropped if its byte is below a threshold, which is 256 · `rate`
    rounded down in some examples, the first axis, and up in the others: one more draw
    for each example makes the mean of the thresholds exact.
    """
    byte_key, example_key = jax.random.split(key)
    byte = random_bytes(byte_key, shape)
    threshold = math.floor(256 * rate)
    share_raised = 256 * rate - threshold
    word = jax.random.bits(example_key, shape[:1], jnp.uint32)
    is_raised = word < np.uint32(min(round(share_raised * 2**32), 2**32 - 1))
    is_raised = jnp.expand_dims(is_raised, range(1, len(shape)))
    # The byte's maximum is 255, so that a threshold of 256 is not to be had in uint8.
    return (byte > threshold) | ((byte == threshold) & ~is_raised)


def dropout(key: Array, x: Array, *, rate: float) -> Array:
    """Set each element to zero with a probability, and scale up the others.

    The others are divided by 1 − `rate`: the expectation is x. Drawing random bits is
    most of the work; the 8 of each element take a quarter of the time of 32.

    Args:
        key: the source of randomness.
        x: a floating-point array, not a scalar, the examples along its first axis.
        rate: in [0, 1).

    Returns:
        An array like x.

    Raises:
        ValueError: if the rate is out of range.

    References: Srivastava et al., Dropout, JMLR 15 (2014).
    """
    chex.assert_shape(x, (None, ...))
    _check("rate", rate)
    if rate == 0:
        return x
    is_kept = draw_kept(key, x.shape, rate=rate)
    chex.assert_equal_shape([is_kept, x])
    scaled = x.astype(float32_or_wider(x.dtype)) * (1 / (1 - rate))
    return jnp.where(is_kept, scaled.astype(x.dtype), jnp.zeros((), x.dtype))


def check_rates(module: nn.Module) -> None:
    """Raise ValueError if one of a module's fields is a rate that is out of range."""
    for field in dataclasses.fields(module):
        if field.name.endswith("rate"):
            _check(field.name, getattr(module, field.name))


def _check(name: str, rate: float) -> None:
    if not 0 <= rate < 1:
        raise ValueError(f"{name} must be in [0, 1), got {rate}")


class Dropout(nn.Module):
    """`dropout` with the rng stream "dropout".

    Attributes:
        rate: in [0, 1).
        deterministic: whether to leave everything as it is; may be given with the call
            instead.
    """

    rate: float
    deterministic: bool | None = None

    @nn.compact
    def __call__(self, x: Array, *, deterministic: bool | None = None) -> Array:
        """Drop elements of any floating-point array."""
        check_rates(self)
        if nn.merge_param("deterministic", self.deterministic, deterministic):
            return x
        if self.rate == 0:  # which needs no rng
            return x
        return dropout(self.make_rng("dropout"), x, rate=self.rate)
