"""Build the task, the model and the optimiser from their sections of the config."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import optax

from train_jax.config.fields import (
    AugmentConfig,
    Config,
    DatasetConfig,
    OptimizerConfig,
)
from train_jax.config.models import IMAGE_MODELS, SEQUENCE_MODELS, create_model
from train_jax.data import ImageSplit, SequenceSplit
from train_jax.devices import policy
from train_jax.learning import optim
from train_jax.learning.augment import channel_statistics
from train_jax.tasks import Classification, Task, Translation


def make_task(
    dataset: DatasetConfig, augment: AugmentConfig, train: ImageSplit | SequenceSplit
) -> Task:
    """Make the task that belongs to a dataset.

    Raises:
        ValueError: for fields that do not fit the dataset.
    """
    if isinstance(train, ImageSplit):
        return _make_classification(dataset, augment, train)
    for field in dataclasses.fields(augment):
        value = getattr(augment, field.name)
        if value != field.default:
            raise ValueError(
                f"config.augment.{field.name} must be {field.default!r} for dataset "
                f"{dataset.name!r}, which has no images, got {value!r}"
            )
    lengths = (train.source_BS.shape[1], train.target_BT.shape[1])
    return Translation(train.num_symbols, *lengths)


def _make_classification(
    dataset: DatasetConfig, augment: AugmentConfig, train: ImageSplit
) -> Classification:
    image_shape = train.image_BHWC.shape[1:]
    side = min(image_shape[:2])
    if augment.crop_padding >= side:
        raise ValueError(
            f"config.augment.crop_padding must be less than {side}, the side of an "
            f"image, got {augment.crop_padding}"
        )
    num_channels = image_shape[-1]
    mean, std = channel_statistics(dataset.name, num_channels)
    mean = mean if dataset.mean is None else dataset.mean
    std = std if dataset.std is None else dataset.std
    for name, value in (("mean", mean), ("std", std)):
        if len(value) != num_channels:
            raise ValueError(
                f"config.dataset.{name} must have {num_channels} values, one for each "
                f"channel, got {value}"
            )
    arguments = dataclasses.asdict(augment)
    return Classification(image_shape, train.class_names, mean, std, arguments)


def make_model(config: Config, task: Task) -> nn.Module:
    """Build the model, and make sure that it takes the task's examples.

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
    model = policy.adapt_model(create_model(name, dtype=config.dtype, **fields))
    try:
        jax.eval_shape(
            functools.partial(init_variables, model, inputs=task.inputs()),
            jax.random.key(0),
        )
    except (ValueError, RuntimeError) as error:
        # JAX raises the latter where cuDNN's attention is not available.
        raise ValueError(f"config.model: {error}") from error
    return model


def init_variables(
    model: nn.Module, key: jax.Array, inputs: tuple[jax.Array, ...]
) -> Any:
    """Draw a model's initial variables; of the inputs only the shapes matter."""
    return jax.jit(functools.partial(model.init, train=False))(key, *inputs)


def make_optimizer(
    optimizer: OptimizerConfig,
    swept: Mapping[str, Any],
    *,
    steps_per_epoch: int,
    total_steps: int,
) -> optax.GradientTransformation:
    """Make the optimiser and its schedule.

    Args:
        optimizer: the config's section.
        swept: dotted field → value, in place of the config's; may be traced.
        steps_per_epoch: number of steps in an epoch.
        total_steps: length of the training.

    Raises:
        ValueError: if the warm-up does not fit.
    """
    warmup_steps = round(optimizer.warmup_epochs * steps_per_epoch)
    if warmup_steps >= total_steps:
        raise ValueError(
            "config.optimizer.warmup_epochs must be shorter than the training, got "
            f"{warmup_steps} of {total_steps} steps"
        )
    schedule = optim.make_schedule(
        optimizer.schedule, total_steps=total_steps, warmup_steps=warmup_steps
    )
    numbers = {
        "learning_rate": optimizer.learning_rate,
        "weight_decay": optimizer.weight_decay,
        "clip_norm": optimizer.clip_norm,
        **optimizer.arguments,
    }
    numbers = {k: swept.get(f"optimizer.{k}", v) for k, v in numbers.items()}
    return optim.make_optimizer(
        optimizer.name, schedule, decay=optimizer.decay, **numbers
    )
