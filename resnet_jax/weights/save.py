"""Write the weights of a ResNet for other libraries."""

import os
import pathlib

import jax

from resnet_jax.resnet import ResNet
from resnet_jax.weights import huggingface, torch
from weight_files import Pretrained, to_theirs, write_huggingface, write_timm

_FORMATS = ("torchvision", "timm", "hf")


def save(
    path: str | os.PathLike[str], pretrained: Pretrained, *, format: str
) -> list[pathlib.Path]:
    """Write a ResNet's weights for another library.

    Args:
        path: a file; for "hf" a folder, which is made if need be.
        pretrained: the model, its variables, and what belongs to them.
        format: "torchvision" or "timm", which have one layout (.safetensors), or "hf".
            The networks for small images, which these libraries have not, are written
            with the same names.

    Returns:
        The files written.

    Raises:
        ValueError: for another format, a model that "hf" cannot express, or if
            safetensors is not installed.
    """
    if format not in _FORMATS:
        raise ValueError(f"format must be one of {', '.join(_FORMATS)}, got {format!r}")
    model, path = pretrained.model, pathlib.Path(path)
    if not isinstance(model, ResNet):
        raise ValueError(f"the model must be a ResNet, got {type(model).__name__}")
    variables = jax.device_get(pretrained.variables)
    if format == "hf":
        huggingface.check(model)
        arrays = torch.add_counters(to_theirs(huggingface.table(model), variables))
        config = huggingface.config_of(model, pretrained.image_shape[2])
        return write_huggingface(path, arrays, config, pretrained)
    arrays = torch.add_counters(to_theirs(torch.table(model), variables))
    return write_timm(path, arrays, pretrained)
