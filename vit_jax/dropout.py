"""Dropout whose random numbers are cheap: four elements share a 32-bit word."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array

_LEVELS = 256


def dropout(key: Array, x: Array, *, rate: float) -> Array:
    """Set each element to zero with a probability, and scale up the others.

    An element is dropped if its 8 random bits are below `rate` · 256, so that the
    probability is `rate` rounded to a 256th. The others are divided by the exact
    probability of being kept: the expectation is x. Drawing the bits is most of the
    work, and takes a quarter of the time of 32 bits an element.

    Args:
        key: the source of randomness.
        x: any floating-point array.
        rate: in [0, 1).

    Returns:
        An array like x.

    Raises:
        ValueError: if the rate is out of range.

    References: Srivastava et al., Dropout, JMLR 15 (2014).
    """
    if not 0 <= rate < 1:
        raise ValueError(f"rate must be in [0, 1), got {rate}")
    threshold = min(round(rate * _LEVELS), _LEVELS - 1)
    if threshold == 0:
        return x
    *leading, last = x.shape
    # Packed along the last axis, so that a batch shared among devices stays shared.
    words = jax.random.bits(key, (*leading, -(-last // 4)), jnp.uint32)
    bits = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(*leading, -1)
    is_kept = bits[..., :last] >= threshold
    chex.assert_equal_shape([is_kept, x])
    scale = jnp.asarray(_LEVELS / (_LEVELS - threshold), x.dtype)
    return jnp.where(is_kept, x * scale, jnp.zeros((), x.dtype))


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
        if nn.merge_param("deterministic", self.deterministic, deterministic):
            return x
        if self.rate == 0:
            return x
        return dropout(self.make_rng("dropout"), x, rate=self.rate)
