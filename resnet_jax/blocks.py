"""Blocks of a residual network: basic and bottleneck.

References: "Deep Residual Learning for Image Recognition", arXiv:1512.03385.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.batch_norm import BatchNorm

Array = jax.Array

# He et al.'s initialisation for layers that are followed by ReLU (arXiv:1502.01852).
_kernel_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


# The signature of `jax.lax.conv_general_dilated`.
ConvGeneralDilated = Callable[..., Array]
Shortcut = Literal["projection", "padding"]


def make_conv(
    features: int,
    kernel: int,
    stride: int,
    *,
    dtype: Any,
    conv_general_dilated: ConvGeneralDilated,
    name: str,
) -> nn.Conv:
    """Make a convolution without bias, with equal padding on both sides."""
    # With a stride, "SAME" pads more behind than before if the total is odd.
    padding = (kernel - 1) // 2
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=stride,
        padding=[(padding, padding)] * 2,
        use_bias=False,
        kernel_init=_kernel_init,
        conv_general_dilated=conv_general_dilated,
        dtype=dtype,
        name=name,
    )


def check_at_least_1(**values: int | None) -> None:
    """Raise ValueError for a number below 1; None, for a part left out, is allowed."""
    for name, value in values.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def pad_shortcut(x_BHWC: Array, features: int, stride: int) -> Array:
    """Fit a block's input to its output without parameters ("option A").

    >>> pad_shortcut(jnp.ones((1, 4, 4, 2)), features=4, stride=2)[0, 0, 0]
    Array([0., 1., 1., 0.], dtype=float32)

    Args:
        features: output channels F, at least C. The new ones are zeros, half of them
            before the others, half behind.
        stride: of the rows and columns that are kept.

    Returns:
        (B, H / stride, W / stride, F), rounded up.

    Raises:
        ValueError: for fewer features than channels.

    References: arXiv:1512.03385, section 3.3, option A.
    """
    chex.assert_rank(x_BHWC, 4)
    batch, height, width, channels = x_BHWC.shape
    if features < channels:
        raise ValueError(
            f"features must be at least {channels}, the number of channels, got "
            f"{features}"
        )
    before = (features - channels) // 2
    out_BHWF = jnp.pad(
        x_BHWC[:, ::stride, ::stride],
        [(0, 0)] * 3 + [(before, features - channels - before)],
    )
    sides = (-(-height // stride), -(-width // stride))
    chex.assert_shape(out_BHWF, (batch, *sides, features))
    return out_BHWF


class ResidualBlock(nn.Module):
    """Convolutions with a shortcut around them; base of the two kinds of block.

    Attributes:
        features: channels of the 3×3 convolutions.
        stride: stride of the first 3×3 convolution.
        shortcut: what becomes of the input exactly where the block changes the shape:
            its 1×1 "projection" or, without parameters, "padding", see `pad_shortcut`.
        dtype: dtype of the computation; parameters and running statistics stay float32.
        conv_general_dilated: function that computes the convolutions; on a CPU
            `resnet_jax.conv_general_dilated` is more than twice as fast as XLA's.
        momentum: share of the old value in BatchNorm's running averages.
        zero_init_residual: whether the scale of the last BatchNorm starts at 0, so that
            the block starts as its shortcut.
        axis_name: named axis of the devices that share a batch, see `BatchNorm`.

    References: arXiv:1512.03385, fig. 5; shortcut: eq. 1 and 2; `zero_init_residual`:
    arXiv:1706.02677, section 5.1.
    """

    expansion = 1

    features: int
    stride: int = 1
    shortcut: Shortcut = "projection"
    dtype: Any = jnp.float32
    conv_general_dilated: ConvGeneralDilated = jax.lax.conv_general_dilated
    momentum: float = 0.9
    zero_init_residual: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x_BHWC: Array, *, train: bool = False) -> Array:
        """Transform a feature map.

        Returns:
            out_BHWF: F = `expansion`·`features`; height and width divided by `stride`
            and rounded up.
        """
        chex.assert_rank(x_BHWC, 4)
        check_at_least_1(features=self.features, stride=self.stride)
        if self.shortcut not in (allowed := get_args(Shortcut)):
            raise ValueError(
                f"shortcut must be one of {allowed}, got {self.shortcut!r}"
            )
        conv = functools.partial(
            make_conv, dtype=self.dtype, conv_general_dilated=self.conv_general_dilated
        )
        norm = functools.partial(
            BatchNorm, self.momentum, axis_name=self.axis_name, dtype=self.dtype
        )
        shortcut = y = x_BHWC.astype(self.dtype)
        layers = self._layers()
        zero_init: Any = {"scale_init": nn.initializers.zeros}
        for index, layer in enumerate(layers, start=1):
            is_last = index == len(layers)
            y = conv(*layer, name=f"conv{index}")(y)
            options = zero_init if is_last and self.zero_init_residual else {}
            y = norm(**options, name=f"norm{index}")(y, train=train)
            y = y if is_last else nn.relu(y)
        features = self.expansion * self.features
        if shortcut.shape != y.shape and self.shortcut == "padding":
            shortcut = pad_shortcut(shortcut, features, self.stride)
        elif shortcut.shape != y.shape:
            shortcut = conv(features, 1, self.stride, name="shortcut_conv")(shortcut)
            shortcut = norm(name="shortcut_norm")(shortcut, train=train)
        batch, *sides, _ = x_BHWC.shape
        sides = [-(-side // self.stride) for side in sides]
        chex.assert_shape([shortcut, y], (batch, *sides, features))
        return nn.relu(shortcut + y)

    def _layers(self) -> Sequence[tuple[int, int, int]]:
        """Return the convolutions as (features, side of the kernel, stride)."""
        raise NotImplementedError


class BasicBlock(ResidualBlock):
    """Two 3×3 convolutions and a shortcut; fields as in `ResidualBlock`.

    >>> block, x_BHWC = BasicBlock(8, stride=2), jnp.ones((1, 4, 4, 3))
    >>> block.init_with_output(jax.random.key(0), x_BHWC)[0].shape
    (1, 2, 2, 8)

    References: arXiv:1512.03385, fig. 5 left.
    """

    def _layers(self) -> Sequence[tuple[int, int, int]]:
        return (self.features, 3, self.stride), (self.features, 3, 1)


class BottleneckBlock(ResidualBlock):
    """1×1, 3×3 and 1×1 convolution and a shortcut; fields as in `ResidualBlock`.

    The output has four times as many channels as the 3×3 convolution. The stride is on
    the 3×3 convolution, which is more accurate than on the first one ("ResNet-50
    v1.5").

    >>> block, x_BHWC = BottleneckBlock(8), jnp.ones((1, 4, 4, 3))
    >>> block.init_with_output(jax.random.key(0), x_BHWC)[0].shape
    (1, 4, 4, 32)

    References: arXiv:1512.03385, fig. 5 right.
    """

    expansion = 4

    def _layers(self) -> Sequence[tuple[int, int, int]]:
        outputs = self.expansion * self.features
        return (self.features, 1, 1), (self.features, 3, self.stride), (outputs, 1, 1)
