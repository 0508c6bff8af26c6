"""Residual networks for small images and for ImageNet.

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
from resnet_jax.dtypes import float32_or_wider

Array = jax.Array

# He et al.'s initialisation for layers that are followed by ReLU (arXiv:1502.01852).
_kernel_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


# The signature of `jax.lax.conv_general_dilated`.
ConvGeneralDilated = Callable[..., Array]
Stem = Literal["small", "imagenet"]


def _conv(
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


def _norm(train: bool, dtype: Any, name: str) -> Callable[[Array], Array]:
    """Make a BatchNorm over the whole batch."""
    return functools.partial(BatchNorm(dtype=dtype, name=name), train=train)


def _check_at_least_1(**values: int | None) -> None:
    """Raise ValueError for a number below 1; None, for a part left out, is allowed."""
    for name, value in values.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


class ResidualBlock(nn.Module):
    """Convolutions with a shortcut around them; base of the two kinds of block.

    The shortcut is the input itself, or its 1×1 projection exactly where the block
    changes the shape.

    Attributes:
        features: channels F of the 3×3 convolutions.
        stride: stride of the first 3×3 convolution.
        dtype: dtype of the computation; parameters and running statistics stay float32.
        conv_general_dilated: function that computes the convolutions; on a CPU
            `resnet_jax.conv_general_dilated` is more than twice as fast as XLA's.

    References: arXiv:1512.03385, fig. 5; shortcut: eq. 1 and 2.
    """

    expansion = 1

    features: int
    stride: int = 1
    dtype: Any = jnp.float32
    conv_general_dilated: ConvGeneralDilated = jax.lax.conv_general_dilated

    @nn.compact
    def __call__(self, x_BHWC: Array, *, train: bool = False) -> Array:
        """Transform a feature map.

        Returns:
            out_BHWF: F = `expansion`·`features`; height and width divided by `stride`.
        """
        chex.assert_rank(x_BHWC, 4)
        _check_at_least_1(features=self.features, stride=self.stride)
        conv = functools.partial(
            _conv, dtype=self.dtype, conv_general_dilated=self.conv_general_dilated
        )
        norm = functools.partial(_norm, train, self.dtype)
        shortcut = y = x_BHWC.astype(self.dtype)
        layers = self._layers()
        for index, layer in enumerate(layers, start=1):
            y = norm(f"norm{index}")(conv(*layer, name=f"conv{index}")(y))
            y = nn.relu(y) if index < len(layers) else y
        if shortcut.shape != y.shape:
            features = self.expansion * self.features
            shortcut = conv(features, 1, self.stride, name="shortcut_conv")(shortcut)
            shortcut = norm("shortcut_norm")(shortcut)
        batch, *sides, _ = x_BHWC.shape
        sides = [-(-side // self.stride) for side in sides]
        chex.assert_shape(
            [shortcut, y], (batch, *sides, self.expansion * self.features)
        )
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


class ResNet(nn.Module):
    """Classify images with a residual network.

    With `train=True` the collection `batch_stats` has to be mutable: BatchNorm then
    normalises with the statistics of the batch and updates its running averages. (An
    empty batch leaves them unchanged.) The running variance averages the batch's
    variance divided by n, as in Flax; PyTorch's is divided by n - 1.

    >>> model = ResNet(10, stage_sizes=(1, 1), width=4)
    >>> model.init_with_output(jax.random.key(0), jnp.ones((1, 8, 8, 3)))[0].shape
    (1, 10)

    Attributes:
        num_classes: number of classes Y; None for no head: the model returns the
            features before the head.
        stage_sizes: number of blocks in each stage; every stage after the first
            halves the resolution and doubles the channels.
        block: BasicBlock or BottleneckBlock.
        stem: "small" for images like CIFAR's, one 3×3 convolution at full resolution;
            "imagenet" for a 7×7 convolution and a max-pool, both with stride 2.
        width: channels of the first stage.
        dtype: dtype of the computation; parameters and running statistics stay float32.
        conv_general_dilated: function that computes the convolutions; on a CPU
            `resnet_jax.conv_general_dilated` is more than twice as fast as XLA's.

    References: arXiv:1512.03385, table 1.
    """

    num_classes: int | None
    stage_sizes: Sequence[int]
    block: type[BasicBlock] | type[BottleneckBlock] = BasicBlock
    stem: Stem = "small"
    width: int = 64
    dtype: Any = jnp.float32
    conv_general_dilated: ConvGeneralDilated = jax.lax.conv_general_dilated

    @nn.compact
    def __call__(self, image_BHWC: Array, *, train: bool = False) -> Array:
        """Compute the class logits of normalised images, floating point.

        Returns:
            logits_BY, or the features (B, F) if `num_classes` is None; float32, or
            float64 where that is the compute dtype.

        Raises:
            ValueError: if a field is out of range, or the image has no pixels.
        """
        chex.assert_rank(image_BHWC, 4)
        chex.assert_type(image_BHWC, float)
        self._check(image_BHWC)
        x_BHWC = self._stem(image_BHWC.astype(self.dtype), train)
        for stage, num_blocks in enumerate(self.stage_sizes):
            for index in range(num_blocks):
                x_BHWC = self.block(
                    self.width * 2**stage,
                    stride=2 if stage > 0 and index == 0 else 1,
                    dtype=self.dtype,
                    conv_general_dilated=self.conv_general_dilated,
                    name=f"stage{stage + 1}_block{index + 1}",
                )(x_BHWC, train=train)

        out_BY = x_BHWC.mean(axis=(1, 2))
        if self.num_classes is not None:
            head = nn.Dense(self.num_classes, dtype=self.dtype, name="head")
            out_BY = head(out_BY)
        num_outputs = self.num_classes or x_BHWC.shape[-1]
        chex.assert_shape(out_BY, (image_BHWC.shape[0], num_outputs))
        return out_BY.astype(float32_or_wider(self.dtype))

    def _stem(self, x_BHWC: Array, train: bool) -> Array:
        """Compute the first feature map."""
        kernel, stride = (3, 1) if self.stem == "small" else (7, 2)
        conv = _conv(
            self.width,
            kernel,
            stride,
            dtype=self.dtype,
            conv_general_dilated=self.conv_general_dilated,
            name="stem_conv",
        )
        x_BHWC = conv(x_BHWC)
        x_BHWC = nn.relu(_norm(train, self.dtype, "stem_norm")(x_BHWC))
        if self.stem == "imagenet":
            padding: Any = [(1, 1), (1, 1)]  # nn.max_pool annotates it as str
            x_BHWC = nn.max_pool(x_BHWC, (3, 3), (2, 2), padding)
        return x_BHWC

    def _check(self, image_BHWC: Array) -> None:
        """Raise ValueError for a field that is out of range, or an empty image."""
        _check_at_least_1(num_classes=self.num_classes, width=self.width)
        if self.stem not in get_args(Stem):
            raise ValueError(f"stem must be 'small' or 'imagenet', got {self.stem!r}")
        if len(self.stage_sizes) < 1 or min(self.stage_sizes) < 1:
            raise ValueError(
                "stage_sizes must be of at least 1 stage of at least 1 block, got "
                f"{tuple(self.stage_sizes)}"
            )
        if min(image_BHWC.shape[1:]) < 1:
            raise ValueError(
                "image_BHWC must have at least 1 pixel and channel, got shape "
                f"{image_BHWC.shape}"
            )


# For small images: 3×3 stem; the names are those in use for CIFAR.
ResNet18 = functools.partial(ResNet, stage_sizes=(2, 2, 2, 2), block=BasicBlock)
ResNet34 = functools.partial(ResNet, stage_sizes=(3, 4, 6, 3), block=BasicBlock)

# The networks of the paper's table 1.
ResNet18_ImageNet = functools.partial(ResNet18, stem="imagenet")
ResNet34_ImageNet = functools.partial(ResNet34, stem="imagenet")
ResNet50_ImageNet = functools.partial(
    ResNet, stage_sizes=(3, 4, 6, 3), block=BottleneckBlock, stem="imagenet"
)
