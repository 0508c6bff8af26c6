"""Convolutions as matrix products, for CPUs.

XLA's CPU backend computes the gradients of a convolution much more slowly than matrix
products, and inside a loop everything of it. GPUs and TPUs have nothing to gain here.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp

from resnet_jax.cpu.winograd import conv3x3
from resnet_jax.dtypes import float32_or_wider

Array = jax.Array

_LAYOUT = ("NHWC", "HWIO", "NHWC")

# With fewer channels there is too little to multiply for Winograd's transforms to pay.
_MIN_CHANNELS = 16
# With fewer pixels in the batch, for each channel, the transform of the kernel takes
# longer than all else: 20 instead of 0.4 ms for an image of 4×4 pixels, 512 channels.
_MIN_PIXELS = 4


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: Any,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = _LAYOUT,
    feature_group_count: int = 1,
    precision: Any = None,
) -> Array:
    """Convolve as `jax.lax.conv_general_dilated` does, by matrix products.

    A drop-in for the field of that name of `flax.linen.Conv`. It computes in float32
    at least: on a CPU that is more than twice as fast as bfloat16. Where
    `conv3x3` does the work, the result is exact to some 1e-5 of its largest value, and
    can be differentiated backward only.

    Args:
        lhs: (B, H, W, C).
        rhs: kernel (height, width, C, F).
        window_strides: of rows and columns.
        padding: pixels of zeros before and after, for rows and columns: with them the
            image must not be smaller than the kernel.
        lhs_dilation: 1 or None: what is said here and below is all that is supported.
        rhs_dilation: 1 or None.
        dimension_numbers: of the axes above.
        feature_group_count: 1.
        precision: None.

    Returns:
        (B, H', W', F), of the dtype of `lhs`.

    Raises:
        ValueError: if something else is asked for.
    """
    chex.assert_rank([lhs, rhs], 4)
    chex.assert_type(rhs, lhs.dtype)
    numbers = jax.lax.conv_dimension_numbers(lhs.shape, rhs.shape, _LAYOUT)
    dilations = {*(lhs_dilation or (1,)), *(rhs_dilation or (1,))}
    if dimension_numbers not in (_LAYOUT, numbers) or isinstance(padding, str):
        raise ValueError(f"expected axes {_LAYOUT} and padding in pixels")
    if dilations != {1} or feature_group_count != 1 or precision is not None:
        raise ValueError("expected no dilation, no groups and the default precision")
    strides, border = tuple(window_strides), [tuple(pair) for pair in padding]
    _check_window(lhs, rhs, strides, border)
    dtype = float32_or_wider(lhs.dtype)
    x_BHWC, kernel = lhs.astype(dtype), rhs.astype(dtype)
    is_3x3 = rhs.shape[:2] == (3, 3) and strides == (1, 1) and border == [(1, 1)] * 2
    num_pixels, channels = math.prod(lhs.shape[:3]), rhs.shape[2]
    pays = num_pixels >= _MIN_PIXELS * max(rhs.shape[2:]) and channels >= _MIN_CHANNELS
    if is_3x3 and pays:
        y_BHWF = conv3x3(x_BHWC, kernel)
    else:
        y_BHWF = _multiply_windows(x_BHWC, kernel, strides, border)
    return y_BHWF.astype(lhs.dtype)


def _check_window(
    lhs: Array,
    rhs: Array,
    strides: Sequence[int],
    border: Sequence[tuple[int, int]],
) -> None:
    """Raise ValueError if the window does not fit into the image, or does not move."""
    image = [lhs.shape[1 + axis] + sum(border[axis]) for axis in range(2)]
    fits = all(1 <= rhs.shape[axis] <= image[axis] for axis in range(2))
    if min(strides) < 1 or min(itertools.chain(*border)) < 0 or not fits:
        raise ValueError(
            "expected strides of at least 1, a border of at least 0 and a kernel no "
            f"larger than the image with it, got strides {strides}, border {border}, "
            f"shapes {lhs.shape} and {rhs.shape}"
        )


def _multiply_windows(
    x_BHWC: Array,
    kernel: Array,
    strides: Sequence[int],
    border: Sequence[tuple[int, int]],
) -> Array:
    """Lay the pixels under the kernel side by side, and multiply: "im2col"."""
    rows, columns, channels, features = kernel.shape
    padded = jnp.pad(x_BHWC, ((0, 0), *border, (0, 0)))
    height, width = (
        (padded.shape[1 + axis] - kernel.shape[axis]) // strides[axis] + 1
        for axis in range(2)
    )
    windows = [
        padded[
            :,
            row : row + (height - 1) * strides[0] + 1 : strides[0],
            column : column + (width - 1) * strides[1] + 1 : strides[1],
        ]
        for row, column in itertools.product(range(rows), range(columns))
    ]
    window_size = rows * columns * channels
    shape = (x_BHWC.shape[0], height, width)
    x_MK = jnp.concatenate(windows, axis=-1).reshape(math.prod(shape), window_size)
    y_MF = x_MK @ kernel.reshape(window_size, features)
    return y_MF.reshape(*shape, features)
