"""Convolutions as one product with the pixels under the kernel ("im2col")."""

import itertools
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

Array = jax.Array


def multiply_windows(
    x_BHWC: Array,
    kernel: Array,
    strides: Sequence[int],
    border: Sequence[tuple[int, int]],
) -> Array:
    """Convolve with any kernel and strides.

    >>> x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((2, 2, 2, 5))
    >>> multiply_windows(x, kernel, (2, 2), [(0, 0)] * 2).shape
    (1, 2, 2, 5)

    Args:
        x_BHWC: feature map.
        kernel: (height, width, C, F), of the dtype of `x_BHWC`.
        strides: of rows and columns.
        border: pixels of zeros before and after, for rows and columns.

    Returns:
        (B, height, width, F).
    """
    chex.assert_rank([x_BHWC, kernel], 4)
    windows = lay_windows(x_BHWC, kernel.shape[:2], strides, border)
    matrix = kernel.reshape(-1, kernel.shape[-1])
    y_BHWF = jnp.matmul(windows, matrix)
    chex.assert_shape(y_BHWF, (len(x_BHWC), None, None, kernel.shape[-1]))
    return y_BHWF


def lay_windows(
    x_BHWC: Array,
    size: Sequence[int],
    strides: Sequence[int],
    border: Sequence[tuple[int, int]],
) -> Array:
    """Lay the pixels under a kernel of that size beside each other.

    Returns:
        (B, height, width, pixels · C).
    """
    # Once, and not again for each pixel under the kernel.
    x_BHWC = jax.lax.optimization_barrier(x_BHWC)
    padded = jnp.pad(x_BHWC, ((0, 0), *border, (0, 0)))
    last = [padded.shape[1 + axis] - size[axis] for axis in range(2)]
    windows = [
        padded[
            :,
            row : row + last[0] + 1 : strides[0],
            column : column + last[1] + 1 : strides[1],
        ]
        for row, column in itertools.product(*map(range, size))
    ]
    return jnp.concatenate(windows, axis=-1)
