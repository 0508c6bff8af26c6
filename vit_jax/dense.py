"""The dense layer that every part of the Transformer uses."""

import functools
import math

import chex
import flax.linen as nn
import jax

Array = jax.Array


def merged_dot_general(
    lhs: Array, rhs: Array, dimension_numbers, precision=None, **kwargs
) -> Array:
    """Contract lhs's last axis with rhs's first, lhs's other axes merged into one.

    The result is that of `jax.lax.dot_general`. Merged, XLA's CPU backend computes
    the gradient of the kernel as one (D, B·T) × (B·T, F) product; with the batch and
    token axes apart it takes a path that is more than twice as slow.

    Args:
        lhs: (..., D).
        rhs: kernel (D, F).
        dimension_numbers: has to name that contraction.

    Returns:
        (..., F).
    """
    chex.assert_rank(rhs, 2)
    contraction = (((lhs.ndim - 1,), (0,)), ((), ()))
    if dimension_numbers != contraction:
        raise ValueError(f"expected {contraction}, got {dimension_numbers}")
    out = jax.lax.dot_general(
        lhs.reshape(math.prod(lhs.shape[:-1]), lhs.shape[-1]),
        rhs,
        (((1,), (0,)), ((), ())),
        precision=precision,
        **kwargs,
    )
    return out.reshape(*lhs.shape[:-1], rhs.shape[-1])


Dense = functools.partial(
    nn.Dense,
    kernel_init=nn.initializers.xavier_uniform(),
    dot_general=merged_dot_general,
)
