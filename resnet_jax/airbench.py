"""A convolutional network that learns CIFAR-10 in a few epochs: "airbench".

References: "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", arXiv:2404.00498.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, ClassVar

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.batch_norm import BatchNorm
from resnet_jax.blocks import ConvGeneralDilated, check_at_least_1
from resnet_jax.dtypes import float32_or_wider

Array = jax.Array

_WHITENING_SIDE = 2


def max_pool(x_BHWC: Array, window: int) -> Array:
    """Take the largest value of each window; the windows do not overlap.

    Rows and columns that do not fill a window are left out. It is a maximum of slices:
    on a CPU the gradient of `flax.linen.max_pool` runs on one core.

    >>> max_pool(jnp.arange(4.0).reshape(1, 2, 2, 1), window=2)
    Array([[[[3.]]]], dtype=float32)

    Args:
        window: side of a window, pixels.

    Returns:
        (B, H / window, W / window, C), rounded down.

    Raises:
        ValueError: if the image is smaller than a window, or that has no pixel.
    """
    chex.assert_rank(x_BHWC, 4)
    if window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    batch, height, width, channels = x_BHWC.shape
    rows, columns = height // window, width // window
    if min(rows, columns) < 1:
        raise ValueError(
            f"the image must be at least {window} pixels high and wide, got "
            f"{height}x{width}"
        )
    cut = x_BHWC[:, : rows * window, : columns * window]
    slices = (
        cut[:, row::window, column::window]
        for row, column in itertools.product(range(window), repeat=2)
    )
    out_BHWC = functools.reduce(jnp.maximum, slices)
    chex.assert_shape(out_BHWC, (batch, rows, columns, channels))
    return out_BHWC


def whitening_kernel(image_BHWC: Array, *, epsilon: float = 5e-4) -> Array:
    """Compute the convolution that makes 2×2 patches uncorrelated, with variance 1.

    Its features are the principal components of the images' patches, each divided by
    the root of its variance, and their negatives.

    >>> whitening_kernel(jnp.ones((1, 4, 4, 3))).shape
    (2, 2, 3, 24)

    Args:
        image_BHWC: normalised images; some thousands are enough.
        epsilon: added to the variances.

    Returns:
        kernel (2, 2, C, 8 · C), float32.

    Raises:
        ValueError: if there is no patch.

    References: arXiv:2404.00498, section 3.2.
    """
    chex.assert_rank(image_BHWC, 4)
    if len(image_BHWC) < 1 or min(image_BHWC.shape[1:3]) < _WHITENING_SIDE:
        raise ValueError(
            f"image_BHWC must hold a patch of {_WHITENING_SIDE}x{_WHITENING_SIDE} "
            f"pixels, got shape {image_BHWC.shape}"
        )
    side, channels = _WHITENING_SIDE, image_BHWC.shape[-1]
    height, width = (length - side + 1 for length in image_BHWC.shape[1:3])
    slices = [
        image_BHWC[:, row : row + height, column : column + width]
        for row, column in itertools.product(range(side), repeat=2)
    ]
    size = side**2 * channels
    patches = jnp.concatenate(slices, axis=-1).reshape(-1, size).astype(jnp.float32)
    # Not centred: the mean patch is one more component.
    moments = jnp.matmul(patches.T, patches, precision="highest") / len(patches)
    variances, components = jnp.linalg.eigh(moments)
    scaled = components / jnp.sqrt(variances + epsilon)[None]
    kernel = jnp.concatenate([scaled, -scaled], axis=1)
    chex.assert_shape(kernel, (size, 2 * size))
    return kernel.reshape(side, side, channels, 2 * size)


def _identity_init(key: Array, shape: Sequence[int], dtype: Any) -> Array:
    """Initialise a 3×3 kernel: its first features are those that come in ("dirac").

    The others are uniformly distributed, as PyTorch initialises a convolution.
    """
    rows, columns, channels, _ = shape
    bound = (rows * columns * channels) ** -0.5
    kernel = jax.random.uniform(key, shape, dtype, -bound, bound)
    same = jnp.zeros((rows, columns, channels, channels), dtype)
    same = same.at[rows // 2, columns // 2].set(jnp.eye(channels, dtype=dtype))
    return kernel.at[..., :channels].set(same[..., : shape[-1]])


def _orthogonal_init(key: Array, shape: Sequence[int], dtype: Any) -> Array:
    """Draw an orthogonal matrix; unlike Flax's initialiser it can be pickled."""
    return nn.initializers.orthogonal()(key, tuple(shape), dtype)


def _unit_uniform(key: Array, shape: Sequence[int], dtype: Any) -> Array:
    """Draw from a uniform distribution with mean 0 and variance 1."""
    return jax.random.uniform(key, shape, dtype, -(3**0.5), 3**0.5)


class AirbenchNet(nn.Module):
    """Classify images of about 32×32 pixels, without shortcuts.

    A fixed convolution, made to whiten patches of 2×2 pixels; then three groups, each
    of a 3×3 convolution, a max-pool, BatchNorm, GELU, and convolutions, BatchNorm and
    GELU without pooling. It is made to be trained by Muon, in few epochs.

    >>> model = AirbenchNet(10, widths=(8, 8, 8))
    >>> model.init_with_output(jax.random.key(0), jnp.ones((1, 32, 32, 3)))[0].shape
    (1, 10)

    Attributes:
        num_classes: number of classes Y; None for no head: the model returns the
            features before the head.
        widths: channels of each of the three groups.
        group_depth: number of convolutions in each group, 2 or 3. With three, as in
            the wider networks of the paper, a shortcut leads around the last two.
        momentum: share of the old value in BatchNorm's running averages.
        whitening_init: initialiser of the first convolution. It whitens only if this
            returns the `whitening_kernel` of the training images:
            `whitening_init=lambda *_: kernel`. No gradient reaches it; leave the
            parameter `whitening` out of weight decay.
        dtype: dtype of the computation; parameters and running statistics stay float32.
        conv_general_dilated: function that computes the convolutions; see `ResNet`.
        axis_name: for BatchNorm; see `ResNet`.

    References: arXiv:2404.00498, section 3 and listing 4; the head:
    airbench94_muon.py of github.com/KellerJordan/cifar10-airbench, whose GELU is exact,
    not the tanh form.
    """

    num_classes: int | None
    widths: tuple[int, int, int] = (64, 256, 256)
    group_depth: int = 2
    momentum: float = 0.6
    whitening_init: nn.initializers.Initializer = _orthogonal_init
    dtype: Any = jnp.float32
    conv_general_dilated: ConvGeneralDilated = jax.lax.conv_general_dilated
    axis_name: str | None = None
    has_convolutions: ClassVar[bool] = True

    @nn.compact
    def __call__(self, image_BHWC: Array, *, train: bool = False) -> Array:
        """Compute the class logits of normalised images, floating point.

        Returns:
            logits_BY, or the features (B, F) if `num_classes` is None; float32, or
            float64 where that is the compute dtype.

        Raises:
            ValueError: if a field is out of range, or the image is too small.
        """
        chex.assert_rank(image_BHWC, 4)
        chex.assert_type(image_BHWC, float)
        self._check(image_BHWC)
        x_BHWC = nn.gelu(self._whiten(image_BHWC.astype(self.dtype)))
        for group, width in enumerate(self.widths, start=1):
            x_BHWC = self._group(x_BHWC, width, f"group{group}", train=train)
        dtype = float32_or_wider(self.dtype)
        out_BY = x_BHWC.max(axis=(1, 2)).astype(dtype)
        if self.num_classes is not None:
            head = nn.Dense(
                self.num_classes,
                use_bias=False,
                kernel_init=_unit_uniform,
                dtype=dtype,
                name="head",
            )
            out_BY = head(out_BY) / out_BY.shape[-1]
        num_outputs = self.num_classes or self.widths[-1]
        chex.assert_shape(out_BY, (image_BHWC.shape[0], num_outputs))
        return out_BY

    def _whiten(self, image_BHWC: Array) -> Array:
        """Convolve with the frozen kernel; its bias is learned."""
        side, channels = _WHITENING_SIDE, image_BHWC.shape[-1]
        features = 2 * side**2 * channels
        shape = (side, side, channels, features)
        kernel = self.param("whitening", self.whitening_init, shape, jnp.float32)
        bias = self.param(
            "whitening_bias", nn.initializers.zeros, (features,), jnp.float32
        )
        x_BHWF = self.conv_general_dilated(
            image_BHWC,
            jax.lax.stop_gradient(kernel).astype(self.dtype),
            (1, 1),
            [(0, 0), (0, 0)],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return x_BHWF + bias.astype(self.dtype)[None, None, None]

    def _group(self, x_BHWC: Array, width: int, name: str, *, train: bool) -> Array:
        """Convolve, halve the resolution, convolve again."""
        shortcut = x_BHWC
        for index in range(1, self.group_depth + 1):
            conv = nn.Conv(
                width,
                (3, 3),
                padding=[(1, 1)] * 2,
                use_bias=False,
                kernel_init=_identity_init,
                conv_general_dilated=self.conv_general_dilated,
                dtype=self.dtype,
                name=f"{name}_conv{index}",
            )
            norm = BatchNorm(
                momentum=self.momentum,
                epsilon=1e-12,
                use_scale=False,
                axis_name=self.axis_name,
                dtype=self.dtype,
                name=f"{name}_norm{index}",
            )
            y_BHWC = conv(x_BHWC)
            y_BHWC = norm(max_pool(y_BHWC, 2) if index == 1 else y_BHWC, train=train)
            if index == 3:
                y_BHWC += shortcut
            x_BHWC = nn.gelu(y_BHWC)
            shortcut = x_BHWC if index == 1 else shortcut
        return x_BHWC

    def _check(self, image_BHWC: Array) -> None:
        """Raise ValueError for a field that is out of range, or too small an image."""
        check_at_least_1(num_classes=self.num_classes)
        if len(self.widths) != 3 or min(self.widths) < 1:
            raise ValueError(
                f"widths must be three numbers of at least 1, got {self.widths}"
            )
        if self.group_depth not in (2, 3):
            raise ValueError(f"group_depth must be 2 or 3, got {self.group_depth}")
        smallest = 2 ** len(self.widths) + _WHITENING_SIDE - 1
        if min(image_BHWC.shape[1:3]) < smallest:
            raise ValueError(
                f"image_BHWC must be at least {smallest} pixels high and wide, got "
                f"shape {image_BHWC.shape}"
            )
