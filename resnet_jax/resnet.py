"""Residual networks, for small images and for ImageNet.

References: "Deep Residual Learning for Image Recognition", arXiv:1512.03385.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.batch_norm import BatchNorm
from resnet_jax.dtypes import float32_or_wider

Array = jax.Array

# He et al.'s initialisation for layers that are followed by ReLU (arXiv:1502.01852).
_kernel_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


# What computes a convolution: the signature of `jax.lax.conv_general_dilated`.
ConvGeneralDilated = Callable[..., Array]


def _conv(
    features: int,
    kernel: int,
    stride: int,
    *,
    dtype: Any,
    conv_general_dilated: ConvGeneralDilated,
    name: str,
) -> nn.Conv:
    """A convolution without bias; padded on both sides alike, whatever the stride."""
    # "SAME" would pad only at the end where stride and kernel ask for an odd amount.
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
    """BatchNorm over the whole batch."""
    return functools.partial(BatchNorm(dtype=dtype, name=name), train=train)


def _check_at_least_1(**values: int | None) -> None:
    """Raise ValueError for a number below 1; None, a part that is left out, is none."""
    for name, value in values.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut around them.

    The shortcut is the input itself, or its 1×1 projection exactly where the block
    changes the shape.

    Attributes:
        features: channels of the output.
        stride: stride of the first convolution.
        dtype: dtype of the computation; parameters and running statistics stay float32.
        conv_general_dilated: what computes the convolutions; on a CPU that of
            `resnet_jax.convolution` is more than twice as fast.

    References: arXiv:1512.03385, fig. 5 left; shortcut: eq. 1 and 2.
    """

    expansion = 1

    features: int
    stride: int = 1
    dtype: Any = jnp.float32
    conv_general_dilated: ConvGeneralDilated = jax.lax.conv_general_dilated

    @nn.compact
    def __call__(self, x_BHWC: Array, *, train: bool = False) -> Array:
        """Transform the feature map.

        Returns:
            out_BHWC: with `features` channels; height and width divided by `stride`.
        """
        chex.assert_rank(x_BHWC, 4)
        _check_at_least_1(features=self.features, stride=self.stride)
        x_BHWC = x_BHWC.astype(self.dtype)
        conv = functools.partial(
            _conv, dtype=self.dtype, conv_general_dilated=self.conv_general_dilated
        )
        norm = functools.partial(_norm, train, self.dtype)
        y_BHWC = conv(self.features, 3, self.stride, name="conv1")(x_BHWC)
        y_BHWC = nn.relu(norm("norm1")(y_BHWC))
        y_BHWC = conv(self.features, 3, 1, name="conv2")(y_BHWC)
        y_BHWC = norm("norm2")(y_BHWC)
        return _add_shortcut(x_BHWC, y_BHWC, self.stride, conv, norm)


class BottleneckBlock(nn.Module):
    """A 3×3 convolution between two 1×1 ones, and a shortcut around them.

    The stride lies on the 3×3 convolution, which is more accurate than on the first
    one ("ResNet-50 v1.5").

    Attributes:
        features: channels of the 3×3 convolution; the output has four times as many.
        stride: stride of the 3×3 convolution.
        dtype: dtype of the computation; parameters and running statistics stay float32.
        conv_general_dilated: what computes the convolutions; on a CPU that of
            `resnet_jax.convolution` is more than twice as fast.

    References: arXiv:1512.03385, fig. 5 right.
    """

    expansion = 4

    features: int
    stride: int = 1
    dtype: Any = jnp.float32
    conv_general_dilated: ConvGeneralDilated = jax.lax.conv_general_dilated

    @nn.compact
    def __call__(self, x_BHWC: Array, *, train: bool = False) -> Array:
        """Transform the feature map.

        Returns:
            out_BHWC: with 4·`features` channels; height and width divided by `stride`.
        """
        chex.assert_rank(x_BHWC, 4)
        _check_at_least_1(features=self.features, stride=self.stride)
        x_BHWC = x_BHWC.astype(self.dtype)
        conv = functools.partial(
            _conv, dtype=self.dtype, conv_general_dilated=self.conv_general_dilated
        )
        norm = functools.partial(_norm, train, self.dtype)
        y_BHWC = conv(self.features, 1, 1, name="conv1")(x_BHWC)
        y_BHWC = nn.relu(norm("norm1")(y_BHWC))
        y_BHWC = conv(self.features, 3, self.stride, name="conv2")(y_BHWC)
        y_BHWC = nn.relu(norm("norm2")(y_BHWC))
        y_BHWC = conv(self.expansion * self.features, 1, 1, name="conv3")(y_BHWC)
        y_BHWC = norm("norm3")(y_BHWC)
        return _add_shortcut(x_BHWC, y_BHWC, self.stride, conv, norm)


def _add_shortcut(
    x_BHWC: Array,
    y_BHWC: Array,
    stride: int,
    conv: Callable[..., nn.Conv],
    norm: Callable[..., Callable[[Array], Array]],
) -> Array:
    """Add the block's input to its branch, projected only where the shapes differ."""
    if x_BHWC.shape != y_BHWC.shape:
        x_BHWC = conv(y_BHWC.shape[-1], 1, stride, name="shortcut_conv")(x_BHWC)
        x_BHWC = norm("shortcut_norm")(x_BHWC)
    chex.assert_equal_shape([x_BHWC, y_BHWC])
    return nn.relu(x_BHWC + y_BHWC)


class ResNet(nn.Module):
    """Classify images with a residual network.

    With `train=True` the collection `batch_stats` has to be mutable: BatchNorm then
    normalises with the statistics of the batch and updates its running ones. (A batch
    of no images has none, and leaves them as they are.) The running variance is that of
    the batch itself, divided by n, as in Flax; PyTorch's is divided by n - 1.

    Attributes:
        num_classes: number of classes Y; None for no head: the model gives the
            features that a head would read.
        stage_sizes: number of blocks in each stage; every stage after the first
            halves the resolution and doubles the channels.
        block: BasicBlock or BottleneckBlock.
        stem: "small" for images like CIFAR's, one 3×3 convolution at full resolution;
            "imagenet" for a 7×7 convolution and a max-pool, both with stride 2.
        width: channels of the first stage.
        dtype: dtype of the computation; parameters and running statistics stay float32.
        conv_general_dilated: what computes the convolutions; on a CPU that of
            `resnet_jax.convolution` is more than twice as fast.

    References: arXiv:1512.03385, table 1.
    """

    num_classes: int | None
    stage_sizes: Sequence[int]
    block: type[BasicBlock] | type[BottleneckBlock] = BasicBlock
    stem: str = "small"
    width: int = 64
    dtype: Any = jnp.float32
    conv_general_dilated: ConvGeneralDilated = jax.lax.conv_general_dilated

    @nn.compact
    def __call__(self, image_BHWC: Array, *, train: bool = False) -> Array:
        """Compute the class logits.

        Args:
            image_BHWC: normalised images, floating point.
            train: whether BatchNorm uses and records the statistics of the batch.

        Returns:
            logits_BY, or the features (B, F) if `num_classes` is None; float32, or
            float64 where that is the compute dtype.

        Raises:
            ValueError: if a field is out of range, or the image has no pixels.
        """
        chex.assert_rank(image_BHWC, 4)
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
        """Turn the image into the first feature map."""
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
        """Raise ValueError for a field, or an image, that makes no sense."""
        _check_at_least_1(num_classes=self.num_classes, width=self.width)
        if self.stem not in ("small", "imagenet"):
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


# For small images, as the networks for CIFAR are customarily called.
ResNet18 = functools.partial(ResNet, stage_sizes=(2, 2, 2, 2), block=BasicBlock)
ResNet34 = functools.partial(ResNet, stage_sizes=(3, 4, 6, 3), block=BasicBlock)

# The networks of the paper's table 1.
ResNet18_ImageNet = functools.partial(ResNet18, stem="imagenet")
ResNet34_ImageNet = functools.partial(ResNet34, stem="imagenet")
ResNet50_ImageNet = functools.partial(
    ResNet, stage_sizes=(3, 4, 6, 3), block=BottleneckBlock, stem="imagenet"
)
