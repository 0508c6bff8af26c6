"""Read weights that others trained: PyTorch's residual networks."""

import re
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import numpy as np

# Name in PyTorch → name here, of torchvision's networks and of the customary ones for
# CIFAR (akamaster's, kuangliu's). {0} is the stage, {1} the block counted from 0.
_LAYERS = {
    r"conv1": "stem_conv",
    r"bn1": "stem_norm",
    r"layer(\d+)\.(\d+)\.conv(\d)": "stage{0}_block{1}/conv{2}",
    r"layer(\d+)\.(\d+)\.bn(\d)": "stage{0}_block{1}/norm{2}",
    r"layer(\d+)\.(\d+)\.(?:downsample|shortcut)\.0": "stage{0}_block{1}/shortcut_conv",
    r"layer(\d+)\.(\d+)\.(?:downsample|shortcut)\.1": "stage{0}_block{1}/shortcut_norm",
    r"fc|linear": "head",
}
_STATISTICS = {"running_mean": "mean", "running_var": "var"}


def from_torch(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the state dict of a residual network in PyTorch into variables.

    >>> from_torch({"fc.weight": np.ones((10, 64))})["params"]["head"]["kernel"].shape
    (64, 10)

    Args:
        state_dict: names as torchvision's or those of the customary implementations
            for CIFAR, with or without "module." before them; tensors or arrays.

    Returns:
        {"params": …, "batch_stats": …} of a `ResNet`, float32.

    Raises:
        ValueError: for a name that belongs to no residual network.
    """
    params, statistics = {}, {}
    for torch_name, tensor in state_dict.items():
        layer, _, kind = torch_name.removeprefix("module.").rpartition(".")
        if kind == "num_batches_tracked":
            continue
        array = np.asarray(tensor, np.float32)
        path = _layer_name(layer, torch_name)
        if kind in _STATISTICS:
            statistics[f"{path}/{_STATISTICS[kind]}"] = array
        elif kind == "weight" and array.ndim == 1:
            params[f"{path}/scale"] = array
        elif kind == "weight":  # (F, C, height, width) or (Y, F)
            params[f"{path}/kernel"] = np.moveaxis(array, (1, 0), (-2, -1))
        elif kind == "bias":
            params[f"{path}/bias"] = array
        else:
            raise ValueError(f"{torch_name!r} is no weight of a residual network")
    unflatten = flax.traverse_util.unflatten_dict
    return {
        "params": unflatten(params, sep="/"),
        "batch_stats": unflatten(statistics, sep="/"),
    }


def _layer_name(layer: str, torch_name: str) -> str:
    """Translate a layer's name; raise ValueError, naming the weight, for others."""
    for pattern, name in _LAYERS.items():
        match = re.fullmatch(pattern, layer)
        if match and match.groups():
            stage, block, *rest = match.groups()
            return name.format(stage, int(block) + 1, *rest)
        if match:
            return name
    raise ValueError(f"{torch_name!r} is no weight of a residual network")
