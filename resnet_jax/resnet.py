"""Residual networks for small images and for ImageNet.

References: "Deep Residual Learning for Image Recognition", arXiv:1512.03385.
"""

import functools
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, get_args

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.batch_norm import BatchNorm
from resnet_jax.blocks import (
    BasicBlock,
    BottleneckBlock,
    ConvGeneralDilated,
    Shortcut,
    check_at_least_1,
    make_conv,
)
from resnet_jax.dtypes import float32_or_wider

Array = jax.Array
Stem = Literal["small", "imagenet"]


class ResNet(nn.Module):
    """Classify images with a residual network.

    With `train=True` the collection `batch_stats` has to be mutable: BatchNorm then
    normalises with the statistics of the batch and updates its running averages. (An
    empty batch leaves them unchanged.) The running variance averages biased variances,
    squares divided by n, as in Flax; PyTorch averages unbiased ones, divided by n − 1.

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
        shortcut: where the shape changes, a 1×1 "projection" or, without parameters,
            "padding" with zeros (arXiv:1512.03385, section 4.2).
        width: channels of the first stage.
        dtype: dtype of the computation; parameters and running statistics stay float32.
        conv_general_dilated: function that computes the convolutions; on a CPU
            `resnet_jax.conv_general_dilated` is more than twice as fast as XLA's.
        momentum: share of the old value in BatchNorm's running averages.
        zero_init_residual: whether every block starts as its shortcut, see
            `ResidualBlock`; usual for ImageNet.
        axis_name: inside `jax.shard_map` or `jax.pmap`, the name of the axis over
            which BatchNorm computes its statistics; None for each shard alone.

    References: arXiv:1512.03385, table 1.
    """

    num_classes: int | None
    stage_sizes: Sequence[int]
    block: type[BasicBlock] | type[BottleneckBlock] = BasicBlock
    stem: Stem = "small"
    shortcut: Shortcut = "projection"
    width: int = 64
    dtype: Any = jnp.float32
    conv_general_dilated: ConvGeneralDilated = jax.lax.conv_general_dilated
    momentum: float = 0.9
    zero_init_residual: bool = False
    axis_name: str | None = None
    has_convolutions: ClassVar[bool] = True

    @nn.compact
    def __call__(
        self, image_BHWC: Array, *, train: bool = False, return_map: bool = False
    ) -> Array:
        """Compute the class logits of normalised images, floating point.

        Returns:
            logits_BY, or the features (B, F) if `num_classes` is None; with
            `return_map` the last feature map (B, height, width, F), before pooling.
            float32, or float64 where that is the compute dtype.

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
                    shortcut=self.shortcut,
                    dtype=self.dtype,
                    conv_general_dilated=self.conv_general_dilated,
                    momentum=self.momentum,
                    zero_init_residual=self.zero_init_residual,
                    axis_name=self.axis_name,
                    name=f"stage{stage + 1}_block{index + 1}",
                )(x_BHWC, train=train)
        dtype = float32_or_wider(self.dtype)
        if return_map:
            chex.assert_shape(x_BHWC, (image_BHWC.shape[0], None, None, None))
            return x_BHWC.astype(dtype)
        out_BY = x_BHWC.mean(axis=(1, 2), dtype=dtype)
        if self.num_classes is not None:
            out_BY = nn.Dense(self.num_classes, dtype=dtype, name="head")(out_BY)
        num_outputs = self.num_classes or x_BHWC.shape[-1]
        chex.assert_shape(out_BY, (image_BHWC.shape[0], num_outputs))
        return out_BY

    def _stem(self, x_BHWC: Array, train: bool) -> Array:
        """Compute the first feature map."""
        kernel, stride = (3, 1) if self.stem == "small" else (7, 2)
        conv = make_conv(
            self.width,
            kernel,
            stride,
            dtype=self.dtype,
            conv_general_dilated=self.conv_general_dilated,
            name="stem_conv",
        )
        x_BHWC = conv(x_BHWC)
        norm = BatchNorm(
            self.momentum,
            axis_name=self.axis_name,
            dtype=self.dtype,
            name="stem_norm",
        )
        x_BHWC = nn.relu(norm(x_BHWC, train=train))
        if self.stem == "imagenet":
            padding: Any = [(1, 1), (1, 1)]  # nn.max_pool annotates it as str
            x_BHWC = nn.max_pool(x_BHWC, (3, 3), (2, 2), padding)
        return x_BHWC

    def _check(self, image_BHWC: Array) -> None:
        """Raise ValueError for a field that is out of range, or an empty image."""
        check_at_least_1(num_classes=self.num_classes, width=self.width)
        if self.stem not in (allowed := get_args(Stem)):
            raise ValueError(f"stem must be one of {allowed}, got {self.stem!r}")
        if len(self.stage_sizes) < 1 or min(self.stage_sizes) < 1:
            raise ValueError(
                "stage_sizes must be of at least 1 stage of at least 1 block, got "
                f"{tuple(self.stage_sizes)}"
            )
        if any(size < 1 for size in image_BHWC.shape[1:]):
            raise ValueError(
                "image_BHWC must have at least 1 pixel and channel, got shape "
                f"{image_BHWC.shape}"
            )


# For small images: 3×3 stem; the names are those in use for CIFAR.
ResNet18 = functools.partial(ResNet, stage_sizes=(2, 2, 2, 2), block=BasicBlock)
ResNet34 = functools.partial(ResNet, stage_sizes=(3, 4, 6, 3), block=BasicBlock)

# The paper's networks for CIFAR-10 (section 4.2).
_cifar = functools.partial(ResNet, block=BasicBlock, shortcut="padding", width=16)
ResNet20 = functools.partial(_cifar, stage_sizes=(3, 3, 3))
ResNet32 = functools.partial(_cifar, stage_sizes=(5, 5, 5))
ResNet44 = functools.partial(_cifar, stage_sizes=(7, 7, 7))
ResNet56 = functools.partial(_cifar, stage_sizes=(9, 9, 9))
ResNet110 = functools.partial(_cifar, stage_sizes=(18, 18, 18))

# The networks of the paper's table 1.
ResNet18_ImageNet = functools.partial(ResNet18, stem="imagenet")
ResNet34_ImageNet = functools.partial(ResNet34, stem="imagenet")
_bottlenecks = functools.partial(ResNet, block=BottleneckBlock, stem="imagenet")
ResNet50_ImageNet = functools.partial(_bottlenecks, stage_sizes=(3, 4, 6, 3))
ResNet101_ImageNet = functools.partial(_bottlenecks, stage_sizes=(3, 4, 23, 3))
ResNet152_ImageNet = functools.partial(_bottlenecks, stage_sizes=(3, 8, 36, 3))
