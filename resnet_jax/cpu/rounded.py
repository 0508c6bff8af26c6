"""Convolutions of numbers rounded to bfloat16.

A processor with AMX multiplies bfloat16 matrices about four times as fast as float32
ones. Then Winograd's transforms take longer than the multiplications they save, and
most of the time goes into moving pixels. To move few of them, an image is laid beside
itself at three shifts of its rows; one product with all nine parts of the kernel gives
three images, one for each column of the kernel, which are shifted and added.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.cpu.bits import from_bits, to_bits, transpose_rounded
from resnet_jax.cpu.chunks import cut

Array = jax.Array

# Numbers in the larger factor of the products that are computed at a time.
_CHUNK_SIZE = 2**21


def rounded_conv3x3(x_BHWC: Array, kernel_33CF: Array) -> Array:
    """Convolve in bfloat16 with a 3×3 kernel, stride 1 and a border of one zero pixel.

    Image and kernel, and for the gradients the output's gradient, are rounded; sums are
    float32. It supports reverse-mode differentiation, once (no jvp).

    >>> rounded_conv3x3(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 5))).shape
    (1, 4, 4, 5)

    Args:
        x_BHWC: feature map, float32.
        kernel_33CF: the kernel, float32.

    Returns:
        y_BHWF, float32.
    """
    chex.assert_rank([x_BHWC, kernel_33CF], 4)
    chex.assert_shape(kernel_33CF, (3, 3, x_BHWC.shape[-1], None))
    chex.assert_type([x_BHWC, kernel_33CF], jnp.float32)
    y_BHWF = _convolve(x_BHWC, kernel_33CF)
    chex.assert_shape(y_BHWF, (*x_BHWC.shape[:3], kernel_33CF.shape[-1]))
    return y_BHWF


@jax.custom_vjp
def _convolve(x_BHWC: Array, kernel_33CF: Array) -> Array:
    matrix = _flatten(kernel_33CF)

    def convolve(x_BHWC: Array) -> Array:
        return _multiply_rows(_stack_rows(x_BHWC), matrix)

    y_BHWF = jax.lax.map(convolve, _cut(x_BHWC, kernel_33CF))
    return y_BHWF.reshape(*x_BHWC.shape[:3], kernel_33CF.shape[-1])


def _forward(x_BHWC: Array, kernel_33CF: Array) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(x_BHWC, kernel_33CF), (x_BHWC, kernel_33CF)


def _backward(saved: tuple[Array, Array], dy_BHWF: Array) -> tuple[Array, Array]:
    x_BHWC, kernel_33CF = saved
    channels, features = kernel_33CF.shape[2:]
    # The image's gradient is a convolution with the kernel turned by 180 degrees. As a
    # matrix it is (3 · F, 3 · C).
    turned = kernel_33CF[::-1, ::-1].reshape(-1, features).astype(jnp.bfloat16)
    turned = transpose_rounded(turned)
    turned = turned.reshape(features, 3, -1).swapaxes(0, 1).reshape(3 * features, -1)

    def add(total: Array, chunk: tuple[Array, Array]) -> tuple[Array, Array]:
        x_BHWC, dy_BHWF = chunk
        rows = _stack_rows(dy_BHWF)
        product = _multiply(_stack_columns(x_BHWC), rows.reshape(-1, 3 * features))
        return total + product, _multiply_rows(rows, turned)

    zeros = jnp.zeros((3 * channels, 3 * features), jnp.float32)
    chunks = _cut(x_BHWC, kernel_33CF), _cut(dy_BHWF, kernel_33CF)
    total, dx_BHWC = jax.lax.scan(add, zeros, chunks)
    # A column of the kernel multiplies a shift of the image, a row one of the gradient,
    # in the opposite direction.
    total = total.reshape(3, channels, 3, features)[:, :, ::-1]
    return dx_BHWC.reshape(x_BHWC.shape), total.transpose(2, 0, 1, 3)


_convolve.defvjp(_forward, _backward)


def _cut(x_BHWX: Array, kernel_33CF: Array) -> Array:
    """Cut a batch into chunks: of the kernel's inputs, or of its outputs."""
    _, height, width, _ = x_BHWX.shape
    widest = 3 * max(kernel_33CF.shape[2:])
    return cut(x_BHWX, _CHUNK_SIZE // max(1, height * width * widest))


def _stack_rows(x_BHWC: Array) -> Array:
    """Lay each pixel's upper and lower neighbours beside it: (B, H, W, 3 · C)."""
    bits = to_bits(x_BHWC)
    rows = [_shift(bits, 1 - i, axis=1) for i in range(3)]
    return from_bits(jnp.concatenate(rows, axis=-1))


def _stack_columns(x_BHWC: Array) -> Array:
    """Transpose, with each pixel's left and right neighbours: (3 · C, B · H · W)."""
    *_, width, channels = x_BHWC.shape
    x_PC = x_BHWC.astype(jnp.bfloat16).reshape(-1, channels)
    bits = to_bits(transpose_rounded(x_PC))
    column = np.arange(bits.shape[1]) % width
    left = jnp.where(column == 0, 0, _shift(bits, 1, axis=1))
    right = jnp.where(column == width - 1, 0, _shift(bits, -1, axis=1))
    return from_bits(jnp.concatenate([left, bits, right]))


def _flatten(kernel_33CF: Array) -> Array:
    """Lay the columns of the kernel side by side: (3 · C, 3 · F)."""
    channels, features = kernel_33CF.shape[2:]
    matrix = kernel_33CF.swapaxes(1, 2).reshape(3 * channels, 3 * features)
    return matrix.astype(jnp.bfloat16)


def _multiply_rows(rows: Array, matrix: Array) -> Array:
    """Convolve stacked rows with a flattened kernel: (B, H, W, F)."""
    product = _multiply(rows.reshape(-1, len(matrix)), matrix)
    parts = product.reshape(*rows.shape[:3], 3, -1)
    left, middle, right = (parts[:, :, :, j] for j in range(3))
    return _shift(left, 1, axis=2) + middle + _shift(right, -1, axis=2)


def _multiply(x: Array, y: Array) -> Array:
    return jnp.matmul(x, y, preferred_element_type=jnp.float32)


def _shift(x: Array, places: int, axis: int) -> Array:
    """Move along an axis, forward or back; zeros move in."""
    sides = [(0, 0, 0)] * x.ndim
    sides[axis] = (places, -places, 0)
    return jax.lax.pad(x, jnp.zeros((), x.dtype), sides)
