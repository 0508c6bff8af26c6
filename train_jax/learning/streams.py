"""Named streams of random numbers."""

import zlib

import chex
import jax

Array = jax.Array


def stream(key: Array, name: str) -> Array:
    """Derive the key of a named stream of random numbers.

    Each augmentation has one of its own, so that switching one off changes no other.
    """
    chex.assert_shape(key, ())
    stream_key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    chex.assert_shape(stream_key, ())
    return stream_key
