"""The layout of PyTorch's residual networks.

That of torchvision and timm, and of the customary implementations for CIFAR, which
differ in two names: kuangliu's, and akamaster's, whose shortcut has no parameters.
"""

import collections
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from resnet_jax.blocks import BasicBlock, BottleneckBlock
from resnet_jax.resnet import ResNet
from weight_files import Entry, convolution, dense, norm, renamed

Arrays = dict[str, np.ndarray]

# Names in the CIFAR networks → torchvision's.
_CIFAR_NAMES = ((r"\.shortcut\.", ".downsample."), (r"^linear\.", "fc."))
_STEM_KERNELS = {3: "small", 7: "imagenet"}


def recognizes(arrays: Mapping[str, Any]) -> bool:
    """Return whether the names are those of a residual network in PyTorch."""
    return "conv1.weight" in arrays and "layer1.0.conv1.weight" in arrays


def read_arrays(arrays: Arrays) -> Arrays:
    """Give the arrays torchvision's names; leave out BatchNorm's counters."""
    simple = {}
    for name, array in arrays.items():
        for pattern, replacement in _CIFAR_NAMES:
            name = re.sub(pattern, replacement, name)
        if not name.endswith(".num_batches_tracked"):
            simple[name] = array
    return simple


def read_fields(arrays: Arrays) -> dict[str, Any]:
    """Find the fields of `ResNet`, and the number of channels."""
    matches = (re.match(r"layer(\d+)\.(\d+)\.", name) for name in arrays)
    blocks = {match.groups() for match in matches if match}
    sizes = collections.Counter(int(stage) for stage, _ in blocks)
    stem = arrays["conv1.weight"]
    if stem.shape[2] not in _STEM_KERNELS:
        raise ValueError(f"their first kernel is {stem.shape[2]} wide, not 3 or 7")
    is_projected = any(".downsample." in name for name in arrays)
    is_bottleneck = "layer1.0.conv3.weight" in arrays
    return {
        "num_classes": len(arrays["fc.weight"]) if "fc.weight" in arrays else None,
        "stage_sizes": tuple(sizes[stage] for stage in sorted(sizes)),
        "block": BottleneckBlock if is_bottleneck else BasicBlock,
        "stem": _STEM_KERNELS[stem.shape[2]],
        "shortcut": "projection" if is_projected or len(sizes) == 1 else "padding",
        "width": stem.shape[0],
        "channels": stem.shape[1],
    }


def table(model: ResNet) -> list[Entry]:
    """Make the entries for a model."""
    entries = _layer("stem_conv", "conv1", "stem_norm", "bn1")
    num_layers = 3 if model.block is BottleneckBlock else 2
    for stage, size in enumerate(model.stage_sizes, start=1):
        for index in range(size):
            ours, theirs = f"stage{stage}_block{index + 1}", f"layer{stage}.{index}"
            for i in range(1, num_layers + 1):
                entries += _layer(
                    f"{ours}/conv{i}", f"{theirs}.conv{i}",
                    f"{ours}/norm{i}", f"{theirs}.bn{i}",
                )  # fmt: skip
            if has_projection(model, stage, index):
                entries += _layer(
                    f"{ours}/shortcut_conv", f"{theirs}.downsample.0",
                    f"{ours}/shortcut_norm", f"{theirs}.downsample.1",
                )  # fmt: skip
    return entries + head(model, "fc")


def has_projection(model: ResNet, stage: int, index: int) -> bool:
    """Return whether a block, its stage counted from 1, has a projection."""
    changes_shape = stage > 1 or model.block is BottleneckBlock
    return model.shortcut == "projection" and index == 0 and changes_shape


def head(model: ResNet, theirs: str) -> list[Entry]:
    """Match the head, if there is one."""
    return [] if model.num_classes is None else dense("params/head", theirs)


def statistics(ours: str, theirs: str) -> list[Entry]:
    """Match the running statistics of a BatchNorm."""
    return [
        renamed(f"batch_stats/{ours}/mean", f"{theirs}.running_mean"),
        renamed(f"batch_stats/{ours}/var", f"{theirs}.running_var"),
    ]


def _layer(our_conv: str, conv: str, our_norm: str, bn: str) -> list[Entry]:
    """Match a convolution and its BatchNorm."""
    return [
        convolution(f"params/{our_conv}", conv),
        *norm(f"params/{our_norm}", bn),
        *statistics(our_norm, bn),
    ]


def add_counters(arrays: Arrays) -> Arrays:
    """Add BatchNorm's counters of batches, which PyTorch expects, as zeros."""
    suffix = ".running_mean"
    layers = [name.removesuffix(suffix) for name in arrays if name.endswith(suffix)]
    zero = np.zeros((), np.int64)
    return arrays | {f"{layer}.num_batches_tracked": zero for layer in layers}
