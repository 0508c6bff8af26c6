"""Convolutions as matrix products, for CPUs.

XLA's CPU backend computes a convolution with many channels, and above all its
gradients, more slowly than matrix products. GPUs and TPUs gain nothing.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp

from resnet_jax.cpu.direct import direct_conv3x3
from resnet_jax.cpu.rounded import rounded_conv3x3
from resnet_jax.cpu.windows import multiply_windows
from resnet_jax.cpu.winograd import conv3x3
from resnet_jax.dtypes import float32_or_wider

Array = jax.Array

_LAYOUT = ("NHWC", "HWIO", "NHWC")

# With fewer channels one product with all pixels under the kernel is faster than XLA's
# convolution.
_MIN_CHANNELS = 4
# With fewer channels before and after it, together, Winograd's transforms take longer
# than the multiplications saved: both ways and the gradients take 15 instead of 28 ms
# for 128 images of 32×32 pixels and 16 channels, 165 instead of 158 ms for 64 channels.
_MIN_TRANSFORMED = 128
# With fewer, moving the pixels takes longer than the multiplications in bfloat16 save.
_MIN_ROUNDED = 80
# With fewer channels a product of windows is no faster in bfloat16.
_MIN_ROUNDED_WINDOWS = 16
# With fewer pixels in the batch, per channel, the transform of the kernel dominates: 20
# instead of 0.4 ms for an image of 4×4 pixels and 512 channels.
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
    *,
    rounds_to_bfloat16: bool = False,
) -> Array:
    """Convolve as `jax.lax.conv_general_dilated` does, by matrix products.

    Use it as the field of that name of `flax.linen.Conv` or of a model on a CPU. It
    computes in float32 or wider: on a CPU that is more than twice as fast as XLA's own
    in bfloat16. By Winograd's method the result is exact to about 1e-5 of its largest
    value. Only reverse-mode differentiation is supported, in `jax.shard_map` with
    `check_vma=False`.

    >>> from resnet_jax import ResNet18
    >>> model = ResNet18(10, conv_general_dilated=conv_general_dilated)

    Args:
        lhs: (B, H, W, C).
        rhs: kernel (height, width, C, F), no larger than the padded image.
        padding: pairs of pixels of zeros before and after, for rows and columns, or
            "SAME" or "VALID".
        rounds_to_bfloat16: round the factors of products of many channels, also for
            gradients, unless they are float64. On a processor with AMX instructions a
            training step of ResNet-18 then takes 0.7 of the time.

    Returns:
        (B, height, width, F), of the dtype of `lhs`.

    Raises:
        ValueError: for any other layout, dilation, groups or precision.
    """
    chex.assert_rank([lhs, rhs], 4)
    chex.assert_shape(rhs, (None, None, lhs.shape[3], None))
    chex.assert_type(rhs, lhs.dtype)
    numbers = jax.lax.conv_dimension_numbers(lhs.shape, rhs.shape, _LAYOUT)
    if dimension_numbers not in (_LAYOUT, numbers):
        raise ValueError(f"expected axes {_LAYOUT}, got {dimension_numbers}")
    if isinstance(padding, str):
        sides = lhs.shape[1:3], rhs.shape[:2]
        padding = jax.lax.padtype_to_pads(*sides, window_strides, padding)
    dilations = {*(lhs_dilation or (1,)), *(rhs_dilation or (1,))}
    if dilations != {1} or feature_group_count != 1 or precision is not None:
        raise ValueError("expected no dilation, no groups and the default precision")
    strides = tuple(window_strides)
    border = [tuple(pair) for pair in padding]
    _check_window(lhs, rhs, strides, border)
    dtype = float32_or_wider(lhs.dtype)
    rounds = rounds_to_bfloat16 and dtype == jnp.float32
    # BatchNorm and ReLU before it are computed once, not again for each pixel under the
    # kernel, if XLA does without its pass cse_barrier_expander.
    x_BHWC = jax.lax.optimization_barrier(lhs.astype(dtype))
    y_BHWF = _convolve(x_BHWC, rhs.astype(dtype), strides, border, rounds)
    chex.assert_shape(y_BHWF, (lhs.shape[0], None, None, rhs.shape[3]))
    return y_BHWF.astype(lhs.dtype)


def _convolve(
    x_BHWC: Array,
    kernel: Array,
    strides: Sequence[int],
    border: Sequence[tuple[int, int]],
    rounds: bool,
) -> Array:
    """Choose the fastest way to convolve: y_BHWF."""
    *_, channels, features = kernel.shape
    is_3x3 = kernel.shape[:2] == (3, 3) and strides == (1, 1)
    is_3x3 = is_3x3 and border == [(1, 1)] * 2
    num_pixels = math.prod(x_BHWC.shape[:3])
    if is_3x3 and channels >= _MIN_CHANNELS:
        if channels + features < (_MIN_ROUNDED if rounds else _MIN_TRANSFORMED):
            return direct_conv3x3(x_BHWC, kernel)
        if num_pixels >= _MIN_PIXELS * max(channels, features):
            return (rounded_conv3x3 if rounds else conv3x3)(x_BHWC, kernel)
    rounds = rounds and channels >= _MIN_ROUNDED_WINDOWS
    return multiply_windows(x_BHWC, kernel, strides, border, rounds=rounds)


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
