"""Convolutions as one product with the pixels under the kernel ("im2col")."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp

from resnet_jax.cpu.bits import from_bits, to_bits, transpose_rounded

Array = jax.Array


def multiply_windows(
    x_BHWC: Array,
    kernel: Array,
    strides: Sequence[int],
    border: Sequence[tuple[int, int]],
    *,
    rounds: bool = False,
) -> Array:
    """Convolve with any kernel and strides.

    It supports reverse-mode differentiation, once (no jvp).

    >>> x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((2, 2, 2, 5))
    >>> multiply_windows(x, kernel, (2, 2), [(0, 0)] * 2).shape
    (1, 2, 2, 5)

    Args:
        x_BHWC: feature map.
        kernel: (height, width, C, F), of the dtype of `x_BHWC`.
        strides: of rows and columns.
        border: pixels of zeros before and after, for rows and columns.
        rounds: whether image and kernel, which are float32, and for the gradients the
            output's gradient, are rounded to bfloat16; sums are float32.

    Returns:
        (B, height, width, F), of the dtype of `x_BHWC`.
    """
    chex.assert_rank([x_BHWC, kernel], 4)
    chex.assert_type(kernel, x_BHWC.dtype)
    y_BHWF = _convolve(x_BHWC, kernel, tuple(strides), tuple(border), rounds)
    chex.assert_shape(y_BHWF, (len(x_BHWC), None, None, kernel.shape[-1]))
    return y_BHWF


def _multiply_windows(
    x_BHWC: Array,
    kernel: Array,
    strides: tuple[int, ...],
    border: tuple[tuple[int, int], ...],
    rounds: bool,
) -> Array:
    windows, matrix = _make_factors(x_BHWC, kernel, strides, border, rounds)
    rows = windows.reshape(-1, len(matrix))
    product = jnp.matmul(rows, matrix, preferred_element_type=x_BHWC.dtype)
    return product.reshape(*windows.shape[:3], kernel.shape[-1])


_convolve = jax.custom_vjp(_multiply_windows, nondiff_argnums=(2, 3, 4))


def _forward(
    x_BHWC: Array, kernel: Array, *options: Any
) -> tuple[Array, tuple[Array, Array]]:
    return _multiply_windows(x_BHWC, kernel, *options), (x_BHWC, kernel)


def _backward(
    strides: tuple[int, ...],
    border: tuple[tuple[int, int], ...],
    rounds: bool,
    saved: tuple[Array, Array],
    dy_BHWF: Array,
) -> tuple[Array, Array]:
    x_BHWC, kernel = saved
    windows, matrix = _make_factors(x_BHWC, kernel, strides, border, rounds)
    dy = dy_BHWF.astype(windows.dtype).reshape(-1, kernel.shape[-1])
    rows = windows.reshape(-1, len(matrix))
    multiply = functools.partial(jnp.matmul, preferred_element_type=x_BHWC.dtype)
    if rounds:
        # XLA would multiply transposed matrices in float32, or not at all.
        dkernel = multiply(transpose_rounded(dy), rows)
        dkernel = jax.lax.optimization_barrier(dkernel).T
        dwindows = multiply(dy, transpose_rounded(matrix))
    else:
        # The windows are transposed, which are at hand. By JAX's own rule it is `dy`,
        # and XLA writes it column by column while it computes it, which can take more
        # than three times as long.
        dkernel = multiply(rows.T, dy)
        dwindows = multiply(dy, matrix.T)
    lay = functools.partial(
        lay_windows, size=kernel.shape[:2], strides=strides, border=border
    )
    _, pull = jax.vjp(lay, x_BHWC)
    return *pull(dwindows.reshape(windows.shape)), dkernel.reshape(kernel.shape)


_convolve.defvjp(_forward, _backward)


def _make_factors(
    x_BHWC: Array,
    kernel: Array,
    strides: tuple[int, ...],
    border: tuple[tuple[int, int], ...],
    rounds: bool,
) -> tuple[Array, Array]:
    """Make the windows, and a matrix of the kernel; both rounded if asked for."""
    size, matrix = kernel.shape[:2], kernel.reshape(-1, kernel.shape[-1])
    if not rounds:
        return lay_windows(x_BHWC, size, strides, border), matrix
    bits = lay_windows(to_bits(x_BHWC), size, strides, border)
    return from_bits(bits), matrix.astype(jnp.bfloat16)


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
