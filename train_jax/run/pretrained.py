"""Load pretrained weights, of a run or of others, and fit them to the new model."""

import sys
from typing import Any

import flax.linen as nn
import flax.traverse_util
import numpy as np

import resnet_jax.weights
import vit_jax.weights
from resnet_jax.resnet import ResNet
from train_jax.output import workdir as wd
from train_jax.run.trained_model import load_model, read_weights
from train_jax.storage.store import any_path, is_remote
from train_jax.tasks import Classification, Task
from vit_jax.vit import ViT
from vit_jax.weights.format import UnknownHeadsError
from weight_files import Pretrained, check_variables, without_other_head


def load_pretrained(init_from: str, num_heads: int | None = None) -> Pretrained:
    """Load what `config.init_from` names.

    Args:
        init_from: the field's value.
        num_heads: number of heads of a ViT whose weights don't say it.

    Raises:
        ValueError: in one line, if that can't be done.
    """

    def read(source: str) -> Pretrained:
        try:
            return read_weights(source)
        except UnknownHeadsError:
            if num_heads is None:
                raise
            return read_weights(source, num_heads=num_heads)

    try:
        if init_from.startswith("hf://"):
            return read(init_from)
        path = any_path(init_from, "it")
        if is_remote(path) or (path / wd.CHECKPOINTS).is_dir():
            return load_model(path).to_pretrained()
        return read(str(path))
    except ValueError as error:
        raise ValueError(f"config.init_from {init_from!r}: {error}") from error


def fit_pretrained(
    pretrained: Pretrained, model: nn.Module, task: Task
) -> dict[str, np.ndarray]:
    """Fit weights to a model that may take other images, and tell other classes.

    See `vit_jax.weights.fit`. The head is left out, to be drawn anew, also if there are
    as many classes of other names; that is said.

    Args:
        pretrained: the weights, and what they belong to.
        model: the new model.
        task: the new task.

    Returns:
        Path, "params/…" or "batch_stats/…", → float32 array.

    Raises:
        ValueError: if the model is another one.
    """
    source = pretrained.model
    if not isinstance(task, Classification) or type(model) is not type(source):
        raise ValueError(
            f"config.init_from is a {type(source).__name__}, config.model is a "
            f"{type(model).__name__}"
        )
    try:
        if isinstance(model, ViT):
            variables = vit_jax.weights.fit(pretrained, model, task.image_shape)
        elif isinstance(model, ResNet):
            variables = resnet_jax.weights.fit(pretrained, model, task.image_shape)
        else:
            variables = without_other_head(pretrained.variables, source, model)
            check_variables(variables, model, task.image_shape)
    except ValueError as error:
        raise ValueError(f"config.init_from: {error}") from error
    flat: Any = flax.traverse_util.flatten_dict(variables, sep="/")
    if not _has_same_classes(pretrained, task):
        flat = {k: v for k, v in flat.items() if not k.startswith("params/head/")}
        classes = f"{task.num_classes} classes"
        print(f"the head is initialised at random, for {classes}", file=sys.stderr)
    return {path: np.asarray(array) for path, array in flat.items()}


def _has_same_classes(pretrained: Pretrained, task: Classification) -> bool:
    """Whether the head tells the classes of the new task."""
    num_classes: int | None = pretrained.model.num_classes  # type: ignore (of both)
    if num_classes != task.num_classes:
        return False
    return pretrained.class_names in (None, task.class_names)
