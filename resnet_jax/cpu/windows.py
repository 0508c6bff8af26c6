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

    It supports reverse-mode differentiation (no jvp).

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
    y_BHWF = _convolve(x_BHWC, kernel, tuple(strides), tuple(border))
    chex.assert_shape(y_BHWF, (len(x_BHWC), None, None, kernel.shape[-1]))
    return y_BHWF


def _multiply(
    x_BHWC: Array,
    kernel: Array,
    strides: tuple[int, ...],
    border: tuple[tuple[int, int], ...],
) -> Array:
    windows = lay_windows(x_BHWC, kernel.shape[:2], strides, border)
    return jnp.matmul(windows, kernel.reshape(-1, kernel.shape[-1]))


_convolve = jax.custom_vjp(_multiply, nondiff_argnums=(2, 3))


def _forward(
    x_BHWC: Array,
    kernel: Array,
    strides: tuple[int, ...],
    border: tuple[tuple[int, int], ...],
) -> tuple[Array, tuple[Array, Array]]:
    return _multiply(x_BHWC, kernel, strides, border), (x_BHWC, kernel)


def _backward(
    strides: tuple[int, ...],
    border: tuple[tuple[int, int], ...],
    saved: tuple[Array, Array],
    dy_BHWF: Array,
) -> tuple[Array, Array]:
    x_BHWC, kernel = saved

    def lay(x_BHWC: Array) -> Array:
        return lay_windows(x_BHWC, kernel.shape[:2], strides, border)

    windows, pull = jax.vjp(lay, x_BHWC)
    matrix = kernel.reshape(-1, kernel.shape[-1])
    dy = dy_BHWF.reshape(-1, kernel.shape[-1])
    # In this order the windows are transposed, which are at hand. By JAX's own rule it
    # is `dy`, and XLA writes it column by column while it computes it: up to four times
    # as slow.
    dkernel = windows.reshape(-1, len(matrix)).T @ dy
    return *pull((dy @ matrix.T).reshape(windows.shape)), dkernel.reshape(kernel.shape)


_convolve.defvjp(_forward, _backward)


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
