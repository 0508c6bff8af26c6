"""Start a training from weights: of a run, or of others; fit them to the new model."""

import functools
import sys
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import numpy as np

import vit_jax.weights
from resnet_jax.resnet import ResNet
from train_jax.devices.store import any_path, is_remote
from train_jax.output import workdir as wd
from train_jax.run.build import init_variables
from train_jax.run.trained import load_model, read_weights
from train_jax.tasks import Classification, Task
from vit_jax.vit import ViT
from weight_files import Pretrained, adapt_channels, find_mismatch

# Fields of a ViT that change what is computed, but not the parameters' shapes.
_SAME_FIELDS = (
    *("num_heads", "activation", "norm", "norm_epsilon", "residual"),
    "position_embedding",
)


def load_start(init_from: str) -> Pretrained:
    """Load what `config.init_from` names.

    Raises:
        ValueError: in one line, if that can't be done.
    """
    try:
        if init_from.startswith("hf://"):
            return read_weights(init_from)
        path = any_path(init_from, "it")
        if is_remote(path) or (path / wd.CHECKPOINTS).is_dir():
            return load_model(path).to_pretrained()
        return read_weights(str(path))
    except ValueError as error:
        raise ValueError(f"config.init_from {init_from!r}: {error}") from error


def fit_start(start: Pretrained, model: nn.Module, task: Task) -> dict[str, np.ndarray]:
    """Fit weights to a model that may take other images, and tell other classes.

    A position embedding is resized to the new grid of patches, the first layer's kernel
    adapted to the new number of channels. The head is left out, to be drawn anew, if
    the classes are others; that is said.

    Args:
        start: the weights, and what they belong to.
        model: the new model.
        task: the new task.

    Returns:
        Path, "params/…" or "batch_stats/…", → float32 array.

    Raises:
        ValueError: if the model is another one.
    """
    if not isinstance(task, Classification) or type(model) is not type(start.model):
        raise ValueError(
            f"config.init_from is a {type(start.model).__name__}, config.model is a "
            f"{type(model).__name__}"
        )
    variables = dict(start.variables)
    if isinstance(model, ViT):
        _check_same_fields(start.model, model)
        change = vit_jax.weights.unstack_blocks
        change = vit_jax.weights.stack_blocks if model.scan else change
        variables["params"] = change(variables["params"])
    given: Any = flax.traverse_util.flatten_dict(variables, sep="/")
    given = {path: np.asarray(array) for path, array in given.items()}
    draw = functools.partial(init_variables, model, inputs=task.inputs())
    abstract = jax.eval_shape(draw, jax.random.key(0))
    wanted: Any = flax.traverse_util.flatten_dict(dict(abstract), sep="/")
    if isinstance(model, ViT):
        _fit_vit(given, start, model, task)
    elif isinstance(model, ResNet):
        kernel = "params/stem_conv/kernel"
        given[kernel] = adapt_channels(given[kernel], task.image_shape[2])
    if not _has_same_classes(start, task):
        given, wanted = (
            {k: v for k, v in flat.items() if not k.startswith("params/head/")}
            for flat in (given, wanted)
        )
        classes = f"{task.num_classes} classes"
        print(f"the head is drawn anew, for {classes}", file=sys.stderr)
    if mismatch := find_mismatch(given, wanted):
        raise ValueError(f"config.init_from: the weights {mismatch}")
    return given


def _check_same_fields(old: Any, new: ViT) -> None:
    """Raise ValueError if the parameters would mean something else."""
    for field in _SAME_FIELDS:
        expected, got = getattr(old, field), getattr(new, field)
        if expected != got:
            raise ValueError(
                f"config.model.{field} must be {expected!r}, as in config.init_from, "
                f"got {got!r}"
            )


def _fit_vit(
    given: dict[str, np.ndarray], start: Pretrained, model: ViT, task: Classification
) -> None:
    """Fit a ViT's position embedding and first layer, in place."""
    old, new = start.image_shape, task.image_shape
    patch = model.patch_size
    name = "params/pos_embedding"
    if name in given and start.model.patch_size == patch:  # type: ignore (a ViT)
        grids = [(shape[0] // patch, shape[1] // patch) for shape in (old, new)]
        if grids[0] != grids[1]:
            resized = vit_jax.weights.resize_position_embedding(given[name], *grids)
            given[name] = np.asarray(resized)
    name = "params/embedding/kernel"
    if name in given and old[2] != new[2]:
        kernel = given[name]
        kernel = kernel.reshape(1, -1, old[2], kernel.shape[1])
        adapted = adapt_channels(kernel, new[2])
        given[name] = adapted.reshape(-1, kernel.shape[-1])


def _has_same_classes(start: Pretrained, task: Classification) -> bool:
    """Whether the head tells the classes of the new task."""
    num_classes: int | None = start.model.num_classes  # type: ignore (of both)
    if num_classes != task.num_classes:
        return False
    return start.class_names in (None, task.class_names)
