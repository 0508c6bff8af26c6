"""From a config's `model` section to a Flax module."""

import dataclasses
import functools
import inspect
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import resnet_jax
import vit_jax

MODELS = {
    "vit": vit_jax.ViT,
    "vit_ti16": vit_jax.ViT_Ti16,
    "vit_s16": vit_jax.ViT_S16,
    "vit_b16": vit_jax.ViT_B16,
    "vit_b32": vit_jax.ViT_B32,
    "vit_l16": vit_jax.ViT_L16,
    "resnet18": resnet_jax.ResNet18,
    "resnet34": resnet_jax.ResNet34,
    "resnet50": resnet_jax.ResNet50,
}

# Set from elsewhere in the config, from the data, or by the preset itself.
_NOT_IN_CONFIG = {"parent", "name", "num_classes", "dtype", "stage_sizes", "block"}


def model_fields(name: str) -> dict[str, inspect.Parameter]:
    """List the module fields that a config may set, with their defaults and types."""
    parameters = inspect.signature(MODELS[name]).parameters
    return {k: p for k, p in parameters.items() if k not in _NOT_IN_CONFIG}


def create_model(
    name: str, *, num_classes: int, dtype: str, **fields: Any
) -> nn.Module:
    """Build the module that `name` stands for.

    Args:
        name: a key of `MODELS`.
        num_classes: number of classes.
        dtype: dtype of the computation.
        **fields: the module's own fields.
    """
    return MODELS[name](num_classes=num_classes, dtype=jnp.dtype(dtype), **fields)


def init_variables(
    model: nn.Module, key: jax.Array, image_shape: tuple[int, ...]
) -> Any:
    """Draw the model's initial variables for images of shape (H, W, C).

    Raises:
        ValueError: if the model's fields fit neither each other nor the image.
    """
    init = jax.jit(functools.partial(model.init, train=False))
    return init(key, jnp.zeros((1, *image_shape)))


def count_parameters(params: Any) -> int:
    """Count the scalars in a parameter tree."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


@dataclasses.dataclass(frozen=True)
class LayerRow:
    """One line of the model's table."""

    name: str
    kind: str
    output_shape: tuple[int, ...]
    num_params: int


def list_layers(
    model: nn.Module, variables: Any, image_shape: tuple[int, ...]
) -> list[LayerRow]:
    """List the model's layers with the shape of their output for one image.

    Nothing is computed: the shapes come from an abstract forward pass.
    """
    rows = []

    def record(next_fun, args, kwargs, context):
        output = next_fun(*args, **kwargs)
        module = context.module
        if context.method_name == "__call__" and _is_listed(module):
            params = module.variables.get("params", {})
            kind, shape = type(module).__name__, tuple(output.shape)
            name = "/".join(module.path)
            rows.append(LayerRow(name, kind, shape, count_parameters(params)))
        return output

    with nn.intercept_methods(record):
        image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        jax.eval_shape(functools.partial(model.apply, train=False), variables, image)
    own = [
        LayerRow(name, "parameter", leaf.shape, count_parameters(leaf))
        for name, leaf in variables["params"].items()
        if isinstance(leaf, jax.Array)
    ]
    return own + [row for row in rows if row.num_params]


def _is_listed(module: nn.Module) -> bool:
    """Whether a module is a layer: a part of the model, or of a stack in it."""
    stacks = (vit_jax.Encoder, vit_jax.Decoder)
    is_inside = isinstance(module.parent, stacks) or len(module.path) == 1
    return is_inside and not isinstance(module, stacks)
