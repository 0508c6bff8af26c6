"""Write the weights of a ViT for other libraries."""

import os
import pathlib
from typing import Any

import jax
import numpy as np

from vit_jax.position import sincos2d_position
from vit_jax.vit import ViT
from vit_jax.weights.huggingface import huggingface_config
from vit_jax.weights.load import FORMATS
from vit_jax.weights.scan import unstack_blocks
from vit_jax.weights.timm import timm_config
from vit_jax.weights.torchvision import check_torchvision
from weight_files import (
    Pretrained,
    to_theirs,
    write_huggingface,
    write_npz,
    write_timm,
)


def save(
    path: str | os.PathLike[str], pretrained: Pretrained, *, format: str
) -> list[pathlib.Path]:
    """Write a ViT's weights for another library.

    Args:
        path: a file; for "hf" a folder, which is made if need be.
        pretrained: the model, its variables, and what belongs to them.
        format: "timm" or "torchvision" (.safetensors), "npz" (the authors') or "hf".

    Returns:
        The files written.

    Raises:
        ValueError: for another format, a model that it cannot express, or if
            safetensors is not installed.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    model, path = pretrained.model, pathlib.Path(path)
    if not isinstance(model, ViT):
        raise ValueError(f"the model must be a ViT, got {type(model).__name__}")
    layout = FORMATS[format]
    params = unstack_blocks(jax.device_get(pretrained.variables["params"]))
    height, width, _ = shape = pretrained.image_shape
    grid = (height // model.patch_size, width // model.patch_size)
    model, params = _with_learned_positions(model.clone(scan=False), params, grid)
    layout.check(model)
    if format == "torchvision":
        check_torchvision(model, shape)
    arrays = to_theirs(layout.table(model), {"params": params})
    arrays = layout.write_arrays(arrays, model)
    if format == "npz":
        write_npz(path, arrays)
        return [path]
    if format == "hf":
        return write_huggingface(
            path, arrays, huggingface_config(model, shape), pretrained
        )
    arguments = timm_config(model, shape)
    config = {"model_args": arguments, "global_pool": arguments["global_pool"]}
    return write_timm(path, arrays, pretrained, **config)


def _with_learned_positions(
    model: ViT, params: dict[str, Any], grid: tuple[int, int]
) -> tuple[ViT, dict[str, Any]]:
    """Write a fixed position embedding, or none, as a learned one."""
    if model.position_embedding not in ("sincos2d", None):
        return model, params
    position_TD = np.zeros((grid[0] * grid[1], model.width), np.float32)
    if model.position_embedding == "sincos2d":
        position_TD = sincos2d_position(grid, model.width)
    before = int(model.pool == "cls")
    position_TD = np.pad(np.asarray(position_TD), [(before, 0), (0, 0)])
    model = model.clone(position_embedding="learned")
    return model, {**params, "pos_embedding": position_TD[None]}
