"""Residual networks for small images and for ImageNet, in JAX and Flax Linen."""

from resnet_jax.batch_norm import BatchNorm
from resnet_jax.cpu.convolution import conv_general_dilated
from resnet_jax.resnet import (
    BasicBlock,
    BottleneckBlock,
    ResNet,
    ResNet18,
    ResNet18_ImageNet,
    ResNet34,
    ResNet34_ImageNet,
    ResNet50_ImageNet,
)

__all__ = [
    "BasicBlock",
    "BatchNorm",
    "BottleneckBlock",
    "ResNet",
    "ResNet18",
    "ResNet18_ImageNet",
    "ResNet34",
    "ResNet34_ImageNet",
    "ResNet50_ImageNet",
    "conv_general_dilated",
]
