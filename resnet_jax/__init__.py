"""Residual networks for small images and for ImageNet, in JAX and Flax Linen."""

from resnet_jax.cpu.convolution import conv_general_dilated as conv_general_dilated
from resnet_jax.resnet import BasicBlock as BasicBlock
from resnet_jax.resnet import BottleneckBlock as BottleneckBlock
from resnet_jax.resnet import ResNet as ResNet
from resnet_jax.resnet import ResNet18 as ResNet18
from resnet_jax.resnet import ResNet18_ImageNet as ResNet18_ImageNet
from resnet_jax.resnet import ResNet34 as ResNet34
from resnet_jax.resnet import ResNet34_ImageNet as ResNet34_ImageNet
from resnet_jax.resnet import ResNet50_ImageNet as ResNet50_ImageNet
