"""Winograd's 3×3 convolution, F(4×4, 3×3): 4 times fewer multiplications.

The image is cut into tiles of 6×6 pixels that overlap by two. In a transformed domain
of 6·6 components the convolution is one matrix product over the channels for each
component, instead of 9 for each of the 16 output pixels of a tile.

Transformed arrays have the axes (components, tiles, channels); the transformed kernel
has (components, C, F).

References: "Fast Algorithms for Convolutional Neural Networks", arXiv:1509.09308.
"""

import functools
import math
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.cpu.chunks import cut

Array = jax.Array

_STEP = 4  # pixels from one tile to the next
_SIDE = 6  # pixels along a tile

# A tile d and a kernel g give the pixels Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A; these are the
# matrices for interpolation at 0, 1, −1, 2, −2 and ∞ (arXiv:1509.09308, section 4.3).
_BT = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
_G = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]])
_G = _G / 24
_AT = np.array(
    [
        [1, 1, 1, 1, 1, 0],
        [0, 1, -1, 2, -2, 0],
        [0, 1, 1, 4, 4, 0],
        [0, 1, -1, 8, -8, 1],
    ]
)

# Size of the arrays transformed at a time, unless the transformed kernel is larger. XLA
# may compute the product of smaller ones on one core; larger ones are slower again.
_CHUNK_SIZE = 2**21


def conv3x3(x_BHWC: Array, kernel_33CF: Array) -> Array:
    """Convolve by Winograd's method, with stride 1 and a border of one zero pixel.

    The result is that of `jax.lax.conv_general_dilated`, to about 1e-5 of its largest
    value in float32. It supports reverse-mode differentiation, once (no jvp).

    >>> conv3x3(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 5))).shape
    (1, 4, 4, 5)

    Args:
        x_BHWC: feature map; height and width are padded to multiples of 4, which costs
            time.
        kernel_33CF: the kernel.

    Returns:
        y_BHWF.
    """
    chex.assert_rank([x_BHWC, kernel_33CF], 4)
    chex.assert_shape(kernel_33CF, (3, 3, x_BHWC.shape[-1], None))
    y_BHWF = _conv3x3(x_BHWC, kernel_33CF)
    chex.assert_shape(y_BHWF, (*x_BHWC.shape[:3], kernel_33CF.shape[-1]))
    return y_BHWF


@jax.custom_vjp
def _conv3x3(x_BHWC: Array, kernel_33CF: Array) -> Array:
    return _convolve(x_BHWC, kernel_33CF)


def _forward(x_BHWC: Array, kernel_33CF: Array) -> tuple[Array, tuple[Array, Array]]:
    return _conv3x3(x_BHWC, kernel_33CF), (x_BHWC, kernel_33CF)


def _backward(saved: tuple[Array, Array], dy_BHWF: Array) -> tuple[Array, Array]:
    x_BHWC, kernel_33CF = saved
    # The image's gradient is a convolution with the kernel turned by 180 degrees.
    turned_33FC = kernel_33CF[::-1, ::-1].swapaxes(2, 3)
    dx_BHWC = _convolve(dy_BHWF, turned_33FC)

    def add(total: Array, chunk: tuple[Array, Array]) -> tuple[Array, None]:
        x_BHWC, dy_BHWF = chunk
        tiles, gradients = _transform_tiles(x_BHWC), _transform_gradient(dy_BHWF)
        return total + jnp.einsum("ntc,ntf->ncf", tiles, gradients), None

    shape = (_SIDE**2, *kernel_33CF.shape[2:])
    chunks = (_cut(x_BHWC, shape), _cut(dy_BHWF, shape))
    total, _ = jax.lax.scan(add, jnp.zeros(shape, x_BHWC.dtype), chunks)
    return dx_BHWC, _untransform_gradient(total)


_conv3x3.defvjp(_forward, _backward)


def _convolve(x_BHWC: Array, kernel_33CF: Array) -> Array:
    """Convolve images with a kernel."""
    kernel = _transform_kernel(kernel_33CF)

    def convolve(x_BHWC: Array) -> Array:
        tiles = jnp.einsum("ntc,ncf->ntf", _transform_tiles(x_BHWC), kernel)
        return _untile(tiles, x_BHWC.shape[:3])

    y = jax.lax.map(convolve, _cut(x_BHWC, kernel.shape))
    return y.reshape(*x_BHWC.shape[:3], y.shape[-1])


def _cut(x_BHWC: Array, kernel_shape: Sequence[int]) -> Array:
    """Cut a batch into equal chunks: (chunks, images of a chunk, H, W, C)."""
    num_components, *channels = kernel_shape
    size_of_one = num_components * math.prod(_grid(x_BHWC.shape)) * max(channels)
    most = max(_CHUNK_SIZE, math.prod(kernel_shape)) // max(1, size_of_one)
    return cut(x_BHWC, most)


def _grid(shape: Sequence[int]) -> tuple[int, int]:
    """Count the tiles of an image (B, H, W, channels): rows, columns."""
    return math.ceil(shape[1] / _STEP), math.ceil(shape[2] / _STEP)


def _pad(x_BHWC: Array, border: int) -> Array:
    """Append zeros for whole tiles, and a border of zeros."""
    missing = [-size % _STEP for size in x_BHWC.shape[1:3]]
    sides = [(border, border + more) for more in missing]
    return jnp.pad(x_BHWC, ((0, 0), *sides, (0, 0)))


def _transform_tiles(x_BHWC: Array) -> Array:
    """Compute Bᵀ d B of each tile d: (components, tiles, C)."""
    rows, columns = (_STEP * n for n in _grid(x_BHWC.shape))
    padded = _pad(x_BHWC, 1)
    by_row = _combine(_BT, [padded[:, i : i + rows : _STEP] for i in range(_SIDE)])
    parts = [by_row[..., j : j + columns : _STEP, :] for j in range(_SIDE)]
    return _combine(_BT, parts).reshape(_SIDE**2, -1, x_BHWC.shape[-1])


def _transform_gradient(dy_BHWF: Array) -> Array:
    """Compute A dy Aᵀ of each tile's pixels: (components, tiles, F)."""
    padded = _pad(dy_BHWF, 0)
    by_row = _combine(_AT.T, [padded[:, i::_STEP] for i in range(_STEP)])
    parts = [by_row[..., j::_STEP, :] for j in range(_STEP)]
    return _combine(_AT.T, parts).reshape(_SIDE**2, -1, dy_BHWF.shape[-1])


def _transform_kernel(kernel_33CF: Array) -> Array:
    """Compute G g Gᵀ: (components, C, F)."""
    # A turned kernel is first written in its new order. XLA would otherwise read it in
    # the old order each time it is used: three times as slowly with 512 channels.
    flat = jax.lax.optimization_barrier(kernel_33CF.reshape(3, 3, -1))
    by_row = _combine(_G, flat)
    transformed = _combine(_G, by_row.swapaxes(0, 1))
    return transformed.reshape(_SIDE**2, *kernel_33CF.shape[2:])


def _untransform_gradient(gradient: Array) -> Array:
    """Compute Gᵀ u G of the transformed kernel's gradient u: (3, 3, C, F)."""
    u_66CF = gradient.reshape(_SIDE, _SIDE, *gradient.shape[1:])
    u_36CF = _combine(_G.T, u_66CF)
    return _combine(_G.T, u_36CF.swapaxes(0, 1))


def _untile(tiles: Array, shape: Sequence[int]) -> Array:
    """Compute Aᵀ m A of each tile m, and lay them side by side: (B, H, W, channels)."""
    batch, height, width = shape
    rows, columns = _grid(shape)
    channels = tiles.shape[-1]
    by_row = _combine(_AT, tiles.reshape(_SIDE, _SIDE, batch, rows, columns, channels))
    pixels = _combine(_AT, by_row.swapaxes(0, 1)).transpose(2, 3, 0, 4, 1, 5)
    padded = pixels.reshape(batch, _STEP * rows, _STEP * columns, channels)
    return padded[:, :height, :width]


def _combine(matrix: np.ndarray, values: Sequence[Array] | Array) -> Array:
    """Multiply by the matrix along the leading axis: (n, ...) → (m, ...).

    Half of the matrix is zero: adding slices is faster than a product.
    """

    def combine(row: np.ndarray) -> Array:
        terms = [float(w) * values[i] for i, w in enumerate(row) if w]
        return functools.reduce(jnp.add, terms)

    return jnp.stack([combine(row) for row in matrix])
