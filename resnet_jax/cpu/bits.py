"""Numbers rounded to bfloat16, moved as integers: XLA moves them as float32."""

import chex
import jax
import jax.numpy as jnp

Array = jax.Array


def to_bits(x: Array) -> Array:
    """Round to bfloat16, as uint16 of the same bits.

    >>> to_bits(jnp.ones(1))
    Array([16256], dtype=uint16)
    """
    return jax.lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16)


def from_bits(bits: Array) -> Array:
    """Undo `to_bits`: uint16 → bfloat16.

    >>> from_bits(to_bits(jnp.ones(1)))
    Array([1], dtype=bfloat16)
    """
    return jax.lax.bitcast_convert_type(bits, jnp.bfloat16)


def transpose_rounded(x: Array) -> Array:
    """Transpose a bfloat16 matrix, by a product with the identity matrix.

    That is exact, and fast; XLA's own transposition is slow.

    >>> transpose_rounded(jnp.ones((2, 3), jnp.bfloat16)).shape
    (3, 2)
    """
    chex.assert_rank(x, 2)
    identity = jnp.eye(x.shape[1], dtype=jnp.bfloat16)
    product = jnp.einsum("dc,pc->dp", identity, x, preferred_element_type=jnp.float32)
    transposed = from_bits(jax.lax.optimization_barrier(to_bits(product)))
    chex.assert_shape(transposed, x.shape[::-1])
    return transposed
