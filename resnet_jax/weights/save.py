"""Write the weights of a ResNet for other libraries."""

import json
import os
import pathlib

import jax

from resnet_jax.resnet import ResNet
from resnet_jax.weights import huggingface, torch
from weight_files import Pretrained, to_theirs, write_json, write_safetensors
from weight_files.huggingface import preprocessor_config
from weight_files.pretrained import timm_preprocessing

_FORMATS = ("torchvision", "timm", "hf")


def save(
    path: str | os.PathLike[str], pretrained: Pretrained, *, format: str
) -> list[pathlib.Path]:
    """Write a ResNet's weights for another library.

    Args:
        path: a file; for "hf" a folder, which is made if need be.
        pretrained: the model, its variables, and what belongs to them.
        format: "torchvision" or "timm", which have one layout (.safetensors), or "hf".

    Returns:
        The files written.

    Raises:
        ValueError: for another format, a model that it cannot express, or if
            safetensors is not installed.
    """
    if format not in _FORMATS:
        raise ValueError(f"format must be one of {', '.join(_FORMATS)}, got {format!r}")
    model, path = pretrained.model, pathlib.Path(path)
    if not isinstance(model, ResNet):
        raise ValueError(f"the model must be a ResNet, got {type(model).__name__}")
    variables = jax.device_get(pretrained.variables)
    if format != "hf":
        arrays = torch.add_counters(to_theirs(torch.table(model), variables))
        config = {
            "pretrained_cfg": timm_preprocessing(pretrained),
            "label_names": list(pretrained.class_names or ()),
        }
        write_safetensors(path, arrays, {"config": json.dumps(config)})
        return [path]
    huggingface.check(model)
    arrays = torch.add_counters(to_theirs(huggingface.table(model), variables))
    names = pretrained.class_names or [
        f"LABEL_{label}" for label in range(model.num_classes or 0)
    ]
    channels = pretrained.image_shape[2]
    files = {
        "config.json": huggingface.config_of(model, channels, names),
        "preprocessor_config.json": preprocessor_config(
            pretrained, "ViTImageProcessor"
        ),
    }
    path.mkdir(parents=True, exist_ok=True)
    write_safetensors(path / "model.safetensors", arrays)
    for name, content in files.items():
        write_json(path / name, content)
    return [path / name for name in ("model.safetensors", *files)]
