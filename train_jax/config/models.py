"""The models that a config can name."""

import inspect
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

import resnet_jax
import vit_jax

IMAGE_MODELS = {
    "vit": vit_jax.ViT,
    "vit_ti16": vit_jax.ViT_Ti16,
    "vit_s16": vit_jax.ViT_S16,
    "vit_s32": vit_jax.ViT_S32,
    "vit_b16": vit_jax.ViT_B16,
    "vit_b32": vit_jax.ViT_B32,
    "vit_l16": vit_jax.ViT_L16,
    "vit_h14": vit_jax.ViT_H14,
    "resnet18": resnet_jax.ResNet18,
    "resnet34": resnet_jax.ResNet34,
    "resnet18_imagenet": resnet_jax.ResNet18_ImageNet,
    "resnet34_imagenet": resnet_jax.ResNet34_ImageNet,
    "resnet50_imagenet": resnet_jax.ResNet50_ImageNet,
    "resnet101_imagenet": resnet_jax.ResNet101_ImageNet,
    "resnet152_imagenet": resnet_jax.ResNet152_ImageNet,
    "resnet20": resnet_jax.ResNet20,
    "resnet32": resnet_jax.ResNet32,
    "resnet44": resnet_jax.ResNet44,
    "resnet56": resnet_jax.ResNet56,
    "resnet110": resnet_jax.ResNet110,
    "airbench": resnet_jax.AirbenchNet,
}
SEQUENCE_MODELS = {
    "transformer": vit_jax.Seq2SeqTransformer,
}
MODELS = IMAGE_MODELS | SEQUENCE_MODELS

# Set from elsewhere in the config, from the data or the device, or by the preset.
_NOT_IN_CONFIG = {
    *("parent", "name", "dtype", "num_classes", "vocab_size"),
    *("stage_sizes", "block", "whitening_init"),
    *("conv_general_dilated", "dot_general", "axis_name"),
}


def model_fields(name: str) -> dict[str, inspect.Parameter]:
    """List the module fields that a config may set, with their defaults and types."""
    parameters = inspect.signature(MODELS[name]).parameters
    return {k: p for k, p in parameters.items() if k not in _NOT_IN_CONFIG}


def create_model(name: str, *, dtype: str, **fields: Any) -> nn.Module:
    """Build a model.

    Args:
        name: a key of `MODELS`.
        dtype: dtype of the computation.
        **fields: the module's own fields.
    """
    return MODELS[name](dtype=jnp.dtype(dtype), **fields)
