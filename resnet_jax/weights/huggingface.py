"""The layout of Hugging Face's `ResNetForImageClassification`."""

from collections.abc import Mapping
from typing import Any

from resnet_jax.blocks import BasicBlock, BottleneckBlock
from resnet_jax.resnet import ResNet
from resnet_jax.weights.torch import Arrays, has_projection, head, statistics
from weight_files import Entry, convolution, norm

_EMBEDDER = "resnet.embedder.embedder"
_BLOCKS = {"basic": BasicBlock, "bottleneck": BottleneckBlock}


def recognizes(arrays: Mapping[str, Any]) -> bool:
    """Return whether the names are those of Hugging Face's ResNet."""
    return any(name.endswith("embedder.embedder.convolution.weight") for name in arrays)


def read_arrays(arrays: Arrays) -> Arrays:
    """Leave out BatchNorm's counters; name arrays as with a head."""
    known = ("resnet.", "classifier.")
    return {
        name if name.startswith(known) else f"resnet.{name}": array
        for name, array in arrays.items()
        if not name.endswith(".num_batches_tracked")
    }


def read_fields(arrays: Arrays, config: Mapping[str, Any]) -> dict[str, Any]:
    """Find the fields of `ResNet`, and the number of channels.

    Raises:
        ValueError: for a network that this project has not.
    """
    kernel = arrays[f"{_EMBEDDER}.convolution.weight"]
    block = config.get("layer_type", "bottleneck")
    allowed = {
        "layer_type": tuple(_BLOCKS),
        "hidden_act": ("relu",),
        "downsample_in_first_stage": (False,),
        "downsample_in_bottleneck": (False,),
    }
    for field, values in allowed.items():
        if config.get(field, values[0]) not in values:
            raise ValueError(
                f"config.json has {field} {config[field]!r}; a ResNet of this project "
                f"has {' or '.join(map(repr, values))}"
            )
    if "depths" not in config:
        raise ValueError("config.json lacks 'depths', the numbers of blocks")
    logits = arrays.get("classifier.1.weight")
    return {
        "num_classes": None if logits is None else len(logits),
        "stage_sizes": tuple(config["depths"]),
        "block": _BLOCKS[block],
        "stem": "imagenet",
        "width": kernel.shape[0],
        "channels": kernel.shape[1],
    }


def table(model: ResNet) -> list[Entry]:
    """Make the entries for a model."""
    entries = _layer("stem_conv", "stem_norm", _EMBEDDER)
    num_layers = 3 if model.block is BottleneckBlock else 2
    for stage, size in enumerate(model.stage_sizes, start=1):
        for index in range(size):
            ours = f"stage{stage}_block{index + 1}"
            theirs = f"resnet.encoder.stages.{stage - 1}.layers.{index}"
            for i in range(num_layers):
                names = (f"{ours}/conv{i + 1}", f"{ours}/norm{i + 1}")
                entries += _layer(*names, f"{theirs}.layer.{i}")
            if has_projection(model, stage, index):
                names = (f"{ours}/shortcut_conv", f"{ours}/shortcut_norm")
                entries += _layer(*names, f"{theirs}.shortcut")
    return entries + head(model, "classifier.1")


def _layer(our_conv: str, our_norm: str, theirs: str) -> list[Entry]:
    """Match a convolution and its BatchNorm."""
    normalization = f"{theirs}.normalization"
    return [
        convolution(f"params/{our_conv}", f"{theirs}.convolution"),
        *norm(f"params/{our_norm}", normalization),
        *statistics(our_norm, normalization),
    ]


def check(model: ResNet) -> None:
    """Raise ValueError for a network that Hugging Face cannot express."""
    for field, value in (("stem", "imagenet"), ("shortcut", "projection")):
        if getattr(model, field) != value:
            raise ValueError(
                f"Hugging Face has no ResNet with {field} {getattr(model, field)!r}; "
                f"it must be {value!r}"
            )


def config_of(model: ResNet, channels: int) -> dict[str, Any]:
    """Make the content of config.json, without the classes."""
    expansion = model.block.expansion
    is_basic = model.block is BasicBlock
    return {
        "architectures": ["ResNetForImageClassification"],
        "model_type": "resnet",
        "num_channels": channels,
        "embedding_size": model.width,
        "hidden_sizes": [
            expansion * model.width * 2**stage
            for stage in range(len(model.stage_sizes))
        ],
        "depths": list(model.stage_sizes),
        "layer_type": "basic" if is_basic else "bottleneck",
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
    }
