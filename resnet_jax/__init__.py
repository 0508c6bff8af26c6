"""Residual networks for small images and for ImageNet, in JAX and Flax Linen."""

from resnet_jax.airbench import AirbenchNet, max_pool, whitening_kernel
from resnet_jax.batch_norm import BatchNorm
from resnet_jax.blocks import BasicBlock, BottleneckBlock, pad_shortcut
from resnet_jax.cpu.convolution import conv_general_dilated
from resnet_jax.resnet import (
    ResNet,
    ResNet18,
    ResNet18_ImageNet,
    ResNet20,
    ResNet32,
    ResNet34,
    ResNet34_ImageNet,
    ResNet44,
    ResNet50_ImageNet,
    ResNet56,
    ResNet101_ImageNet,
    ResNet110,
    ResNet152_ImageNet,
)

__all__ = [
    "AirbenchNet",
    "BasicBlock",
    "BatchNorm",
    "BottleneckBlock",
    "ResNet",
    "ResNet18",
    "ResNet18_ImageNet",
    "ResNet20",
    "ResNet32",
    "ResNet34",
    "ResNet34_ImageNet",
    "ResNet44",
    "ResNet50_ImageNet",
    "ResNet56",
    "ResNet101_ImageNet",
    "ResNet110",
    "ResNet152_ImageNet",
    "conv_general_dilated",
    "max_pool",
    "pad_shortcut",
    "whitening_kernel",
]
