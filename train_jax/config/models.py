"""From a config's `model` section to a Flax module."""

import dataclasses
import functools
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

import resnet_jax
import vit_jax
from resnet_jax import convolution

CONVOLUTIONAL_MODELS = {
    "resnet18": resnet_jax.ResNet18,
    "resnet34": resnet_jax.ResNet34,
    "resnet18_imagenet": resnet_jax.ResNet18_ImageNet,
    "resnet34_imagenet": resnet_jax.ResNet34_ImageNet,
    "resnet50_imagenet": resnet_jax.ResNet50_ImageNet,
}
IMAGE_MODELS = {
    "vit": vit_jax.ViT,
    "vit_ti16": vit_jax.ViT_Ti16,
    "vit_s16": vit_jax.ViT_S16,
    "vit_b16": vit_jax.ViT_B16,
    "vit_b32": vit_jax.ViT_B32,
    "vit_l16": vit_jax.ViT_L16,
    **CONVOLUTIONAL_MODELS,
}
SEQUENCE_MODELS = {
    "transformer": vit_jax.Seq2SeqTransformer,
}
MODELS = IMAGE_MODELS | SEQUENCE_MODELS

# Set from elsewhere in the config, from the data, or by the preset itself.
_NOT_IN_CONFIG = {
    *("parent", "name", "dtype", "num_classes", "vocab_size"),
    *("stage_sizes", "block", "conv_general_dilated"),
}


def model_fields(name: str) -> dict[str, inspect.Parameter]:
    """List the module fields that a config may set, with their defaults and types."""
    parameters = inspect.signature(MODELS[name]).parameters
    return {k: p for k, p in parameters.items() if k not in _NOT_IN_CONFIG}


def create_model(name: str, *, dtype: str, **fields: Any) -> nn.Module:
    """Build the module that `name` stands for.

    Args:
        name: a key of `MODELS`.
        dtype: dtype of the computation.
        **fields: the module's own fields.

    Raises:
        ValueError: if what they ask for is not to be had on this device.
    """
    if fields.get("attention_implementation") == "cudnn":
        _check_cudnn(dtype)
    if name in CONVOLUTIONAL_MODELS and _has_one_cpu():
        # It goes through the batch in chunks, which several devices could not share.
        fields["conv_general_dilated"] = convolution.conv_general_dilated
    return MODELS[name](dtype=jnp.dtype(dtype), **fields)


def _check_cudnn(dtype: str) -> None:
    """Raise ValueError if cuDNN's attention does not work here."""
    if jax.default_backend() != "gpu" or dtype == "float32":
        raise ValueError(
            "config.model.attention_implementation 'cudnn' needs a GPU and "
            f"config.dtype bfloat16, got {jax.default_backend()} and {dtype}"
        )


def _has_one_cpu() -> bool:
    """Whether a single CPU does all the work."""
    return jax.default_backend() == "cpu" and jax.device_count() == 1


def init_variables(
    model: nn.Module, key: jax.Array, inputs: Sequence[jax.Array]
) -> Any:
    """Draw the model's initial variables.

    Args:
        model: the module.
        key: the source of randomness.
        inputs: what the model is called with; only shapes and dtypes matter.

    Raises:
        ValueError: if the model's fields fit neither each other nor the inputs.
    """
    return jax.jit(functools.partial(model.init, train=False))(key, *inputs)


def count_parameters(params: Any) -> int:
    """Count the scalars in a parameter tree."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def kernel_checksums(params: Any) -> dict[str, int]:
    """Map each kernel to a number that is another one once the kernel has changed.

    Of a kernel that several devices share, the share of one of them counts.
    """
    flat: dict[str, Any] = flax.traverse_util.flatten_dict(params, sep="/")
    kernels = {k: v for k, v in flat.items() if k.endswith("kernel")}
    shares = jax.device_get({k: v.addressable_data(0) for k, v in kernels.items()})
    return {k: int(v.view(np.uint32).sum(dtype=np.uint32)) for k, v in shares.items()}


# Of these, the parts are listed.
_STACKS = (vit_jax.Transformer, vit_jax.Encoder, vit_jax.Decoder)


@dataclasses.dataclass(frozen=True)
class LayerRow:
    """One line of the model's table."""

    name: str
    kind: str
    output_shape: tuple[int, ...]
    num_params: int


def list_layers(
    model: nn.Module, variables: Any, inputs: Sequence[jax.Array]
) -> list[LayerRow]:
    """List the model's layers with the shape of their output.

    Nothing is computed: the shapes come from an abstract forward pass.
    """
    rows: dict[str, LayerRow] = {}
    all_params = variables["params"]
    stacks = {()}

    def record(next_fun, args, kwargs, context):
        path = context.module.path
        is_stack = isinstance(context.module, _STACKS)
        if is_stack:
            stacks.add(path)
        output = next_fun(*args, **kwargs)
        name = "/".join(path)
        is_layer = bool(path) and path[:-1] in stacks and not is_stack
        if is_layer and context.method_name == "__call__" and name not in rows:
            # Of all blocks, where they are scanned.
            params = functools.reduce(lambda x, k: x.get(k, {}), path, all_params)
            kind, shape = type(context.module).__name__, tuple(output.shape)
            rows[name] = LayerRow(name, kind, shape, count_parameters(params))
        return output

    with nn.intercept_methods(record):
        jax.eval_shape(functools.partial(model.apply, train=False), variables, *inputs)
    own = [
        LayerRow(name, "parameter", leaf.shape, count_parameters(leaf))
        for name, leaf in all_params.items()
        if not isinstance(leaf, Mapping)
    ]
    return own + [row for row in rows.values() if row.num_params]
