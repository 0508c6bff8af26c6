"""Products of float32 matrices that are rounded to bfloat16, for CPUs.

On a processor with instructions for bfloat16 XLA's CPU backend multiplies twice as fast
if both factors are bfloat16, the result is asked for in float32, and the axis that is
summed over is not the first one of the left-hand side. Everything but products is
slower in bfloat16: each operation converts to float32 and back.
"""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp

Array = jax.Array


def dot_general(
    lhs: Array,
    rhs: Array,
    dimension_numbers: Any,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> Array:
    """Multiply as `jax.lax.dot_general` does, float32 factors rounded to bfloat16.

    The sums are float32. The gradient's products are rounded likewise. Use it as the
    field of that name of `ViT` and its parts, on a CPU. Only reverse-mode
    differentiation is supported, in `jax.shard_map` with `check_vma=False`.

    >>> x = jnp.full((1, 1), 1.001)
    >>> dot_general(x, x, (((1,), (0,)), ((), ())))
    Array([[1.]], dtype=float32)

    Args:
        lhs: floating point; factors of other dtypes are multiplied by `jax.lax`.
        rhs: of the same dtype.
        dimension_numbers: contracted axes and batch axes, as in `jax.lax.dot_general`.
        precision: likewise.
        preferred_element_type: likewise.

    Returns:
        An array with the batch axes, the other axes of lhs, and those of rhs.
    """
    chex.assert_type(rhs, lhs.dtype)
    (lhs_sum, rhs_sum), (lhs_batch, rhs_batch) = dimension_numbers
    num_axes = lhs.ndim + rhs.ndim - 2 * len(lhs_sum) - len(lhs_batch)
    if lhs.dtype != jnp.float32 or precision is not None:
        out = jax.lax.dot_general(
            lhs, rhs, dimension_numbers, precision, preferred_element_type
        )
        chex.assert_rank(out, num_axes)
        return out
    letters = [chr(ord("a") + axis) for axis in range(lhs.ndim + rhs.ndim)]
    lhs_axes, rhs_axes = letters[: lhs.ndim], letters[lhs.ndim :]
    shared = ((*lhs_sum, *lhs_batch), (*rhs_sum, *rhs_batch))
    for i, j in zip(*shared, strict=True):
        rhs_axes[j] = lhs_axes[i]
    batch = [lhs_axes[i] for i in lhs_batch]
    free = [x for x in (*lhs_axes, *rhs_axes) if (x in lhs_axes) != (x in rhs_axes)]
    axes = tuple("".join(x) for x in (lhs_axes, rhs_axes, batch + free))
    out: Any = _multiply(axes, lhs, rhs)
    chex.assert_rank(out, num_axes)
    return out.astype(preferred_element_type or jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _multiply(axes: tuple[str, str, str], lhs: Array, rhs: Array) -> Array:
    """Multiply by `jnp.einsum`; `axes` are those of lhs, rhs and the result."""
    return _einsum(*axes, lhs.astype(jnp.bfloat16), rhs.astype(jnp.bfloat16))


def _forward(axes: tuple[str, str, str], lhs: Array, rhs: Array) -> Any:
    lhs, rhs = lhs.astype(jnp.bfloat16), rhs.astype(jnp.bfloat16)
    return _einsum(*axes, lhs, rhs), (lhs, rhs)


def _backward(axes: tuple[str, str, str], saved: Any, cotangent: Array) -> Any:
    lhs, rhs = saved
    cotangent = cotangent.astype(jnp.bfloat16)
    lhs_axes, rhs_axes, out_axes = axes
    d_lhs = _einsum(out_axes, rhs_axes, lhs_axes, cotangent, rhs)
    return d_lhs, _einsum(lhs_axes, out_axes, rhs_axes, lhs, cotangent)


def _einsum(x_axes: str, y_axes: str, out_axes: str, x: Array, y: Array) -> Array:
    """Multiply; matrices in the order in which XLA multiplies them in bfloat16.

    The left-hand side has the rows of the result, and the sum is over its last axis.
    """
    batch = "".join(a for a in x_axes if a in y_axes and a in out_axes)
    each = (x_axes, y_axes, out_axes)
    if all(a.startswith(batch) and len(a) == len(batch) + 2 for a in each):
        if out_axes[-2] in y_axes:
            x_axes, y_axes, x, y = y_axes, x_axes, y, x
        if x_axes[-2] not in out_axes:
            x_axes = batch + x_axes[-1] + x_axes[-2]
            x = _transpose(x)
    product = f"{x_axes},{y_axes}->{out_axes}"
    return jnp.einsum(product, x, y, preferred_element_type=jnp.float32)


def _transpose(x: Array) -> Array:
    """Transpose matrices in memory, where XLA would only change their layout."""
    transposed = x.swapaxes(-1, -2)
    flat = jax.lax.optimization_barrier(transposed.reshape(-1))
    return flat.reshape(transposed.shape)


_multiply.defvjp(_forward, _backward)
