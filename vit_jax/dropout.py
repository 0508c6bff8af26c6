"""Dropout whose random numbers are cheap: eight elements share a call of the cipher."""

import dataclasses
import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array

_LEVELS = 256

# Of Threefry-2x32: how far each round rotates, and the key schedule's parity.
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def threefry_2x32(key: tuple[Array, Array], x: Array, y: Array) -> tuple[Array, Array]:
    """Encrypt pairs of words by Threefry-2x32-20, the cipher of `jax.random`.

    Written out in a row, XLA's CPU backend makes one loop over the elements of it; what
    it makes of `jax.random.bits`, which also throws away every second word, takes
    twice as long.

    Args:
        key: two uint32 scalars.
        x: uint32, the first word of each pair.
        y: like x, the second one.

    Returns:
        The encrypted pairs, like x and y.

    References: Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011.
    """
    chex.assert_type([*key, x, y], jnp.uint32)
    schedule = (*key, key[0] ^ key[1] ^ jnp.uint32(_PARITY))
    x, y = x + schedule[0], y + schedule[1]
    for turn in range(5):
        for bits in _ROTATIONS[turn % 2]:
            x = x + y
            y = x ^ (y << bits | y >> (32 - bits))
        x = x + schedule[(turn + 1) % 3]
        y = y + schedule[(turn + 2) % 3] + jnp.uint32(turn + 1)
    return x, y


def random_bytes(key: Array, shape: tuple[int, ...]) -> Array:
    """Draw uint8 numbers; those of an example, the first axis, depend on it alone."""
    size = math.prod(shape[1:])
    grid = (shape[0], -(-size // 8))
    example, place = (jax.lax.broadcasted_iota(jnp.uint32, grid, i) for i in (0, 1))
    first, second = jax.random.bits(key, (2,), jnp.uint32)
    words = jnp.concatenate(threefry_2x32((first, second), example, place), axis=1)
    numbers = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(shape[0], -1)
    return numbers[:, :size].reshape(shape)


def dropout(key: Array, x: Array, *, rate: float) -> Array:
    """Set each element to zero with a probability, and scale up the others.

    An element is dropped if its 8 random bits are below `rate` · 256, so that the
    probability is `rate` rounded to a 256th. The others are divided by the exact
    probability of being kept: the expectation is x. Drawing the bits is most of the
    work, and takes a quarter of the time of 32 bits an element.

    Args:
        key: the source of randomness.
        x: a floating-point array, not a scalar.
        rate: in [0, 1).

    Returns:
        An array like x.

    Raises:
        ValueError: if the rate is out of range.

    References: Srivastava et al., Dropout, JMLR 15 (2014).
    """
    _check("rate", rate)
    threshold = min(round(rate * _LEVELS), _LEVELS - 1)
    if threshold == 0:
        return x
    is_kept = random_bytes(key, x.shape) >= threshold
    chex.assert_equal_shape([is_kept, x])
    scale = jnp.asarray(_LEVELS / (_LEVELS - threshold), x.dtype)
    return jnp.where(is_kept, x * scale, jnp.zeros((), x.dtype))


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
        if self.rate == 0:
            return x
        return dropout(self.make_rng("dropout"), x, rate=self.rate)
