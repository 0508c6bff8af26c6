"""Build the model from the config, and draw its variables."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax import whitening_kernel
from train_jax.config.fields import Config
from train_jax.config.models import IMAGE_MODELS, SEQUENCE_MODELS, create_model
from train_jax.data import ImageSplit, Split
from train_jax.devices import policy
from train_jax.learning.augment import normalize
from train_jax.tasks import Classification, Task


def make_model(
    config: Config, task: Task, *, devices: Sequence[Any] | None = None
) -> nn.Module:
    """Build the model, and make sure that it takes the task's examples.

    Args:
        config: names the model, its fields and the dtype.
        task: has the examples.
        devices: that the model is to run on; all of them if not given.

    Raises:
        ValueError: if the model is one of another task, or its fields fit neither each
            other nor the examples.
    """
    name = config.model.name
    known = IMAGE_MODELS if isinstance(task, Classification) else SEQUENCE_MODELS
    if name not in known:
        raise ValueError(
            f"config.model.name must be one of {', '.join(known)} for dataset "
            f"{config.dataset.name!r}, got {name!r}"
        )
    fields = {**task.model_fields, **config.model.arguments}
    model = create_model(name, dtype=config.dtype, **fields)
    model = policy.adapt_model(model, devices=devices)
    try:
        jax.eval_shape(
            functools.partial(init_variables, model, inputs=task.inputs()),
            jax.random.key(0),
        )
    except (ValueError, RuntimeError) as error:
        # JAX raises the latter where cuDNN's attention is not available.
        raise ValueError(f"config.model: {error}") from error
    return model


# Number of training images used for whitening, as in airbench's code.
_NUM_WHITENED = 5000


def whiten(model: nn.Module, task: Task, train: Split) -> nn.Module:
    """Let a model with a whitening layer start from the training images' patches."""
    if not hasattr(model, "whitening_init"):
        return model
    assert isinstance(task, Classification) and isinstance(train, ImageSplit)
    images = normalize(
        jnp.asarray(np.asarray(train.image_BHWC[:_NUM_WHITENED])),
        mean=task.mean,
        std=task.std,
    )
    kernel = np.asarray(whitening_kernel(images))
    return model.clone(whitening_init=lambda key, shape, dtype: jnp.asarray(kernel))


def init_variables(
    model: nn.Module, key: jax.Array, inputs: tuple[jax.Array, ...]
) -> Any:
    """Draw a model's initial variables; of the inputs only the shapes matter."""
    return jax.jit(functools.partial(model.init, train=False))(key, *inputs)
