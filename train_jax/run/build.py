"""Build the task, the model and the optimiser from their sections of the config."""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax

from resnet_jax import whitening_kernel
from train_jax.config.fields import AugmentConfig, Config, DatasetConfig
from train_jax.config.models import IMAGE_MODELS, SEQUENCE_MODELS, create_model
from train_jax.config.optimizer_fields import GroupConfig, OptimizerConfig, RuleConfig
from train_jax.data import ImageSplit, SequenceSplit
from train_jax.devices import policy
from train_jax.learning import optim
from train_jax.learning.augment import normalize
from train_jax.run.pixels import border_brightness, choose_statistics
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


# Of so many training images the pixels are measured: mean, deviation, border.
_NUM_MEASURED = 1000


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
    for name in ("saturation", "hue"):
        if getattr(augment, name) and num_channels != 3:
            raise ValueError(
                f"config.augment.{name} must be 0 for images of {num_channels} "
                f"channels, got {getattr(augment, name)}"
            )
    sample_BHWC = np.asarray(train.image_BHWC[:_NUM_MEASURED])
    mean, std = choose_statistics(
        dataset.name, train, sample_BHWC, mean=dataset.mean, std=dataset.std
    )
    changes = dataclasses.asdict(augment)
    del changes["crop_area"]  # Done when the images are loaded.
    return Classification(
        image_shape,
        train.class_names,
        mean,
        std,
        augment=changes,
        border=border_brightness(sample_BHWC),
    )


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


# Of so many training images the patches are whitened; airbench's code takes as many.
_NUM_WHITENED = 5000


def whiten(
    model: nn.Module, task: Task, train: ImageSplit | SequenceSplit
) -> nn.Module:
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


def groups_of(config: Config) -> dict[str, GroupConfig]:
    """Map the field that declares each group of parameters to the group."""
    groups = {f"groups.{name}": group for name, group in config.groups.items()}
    if config.freeze is None:
        return groups
    frozen = GroupConfig(params="^(?!head/)", learning_rate=0.0)
    return {"freeze": frozen, **groups}


def frozen_params(config: Config) -> list[str]:
    """List the regular expressions that fit the parameters which are not trained."""
    groups = groups_of(config).values()
    return [group.params for group in groups if not group.learning_rate]


def optimizer_of(
    optimizer: OptimizerConfig,
    groups: Mapping[str, GroupConfig],
    swept: Mapping[str, Any],
    *,
    steps_per_epoch: int,
    total_steps: int,
) -> optax.GradientTransformation:
    """Make the optimiser and its schedules.

    Args:
        optimizer: the config's section.
        groups: likewise.
        swept: dotted field → value, in place of the config's; may be traced.
        steps_per_epoch: number of steps in an epoch.
        total_steps: length of the training.

    Raises:
        ValueError: if the warm-up does not fit.
    """
    lengths = {"steps_per_epoch": steps_per_epoch, "total_steps": total_steps}
    return optim.make_optimizer(
        _make_rule("optimizer", optimizer, swept, **lengths),
        clip_norm=swept.get("optimizer.clip_norm", optimizer.clip_norm),
        layer_decay=optimizer.layer_decay,
        groups={
            group.params: _make_rule(section, group, swept, **lengths)
            for section, group in groups.items()
            if group.learning_rate
        },
        frozen=[group.params for group in groups.values() if not group.learning_rate],
    )


def _make_rule(
    section: str,
    rule: RuleConfig,
    swept: Mapping[str, Any],
    *,
    steps_per_epoch: int,
    total_steps: int,
) -> optax.GradientTransformation:
    """Make the update rule that a section describes."""
    num_epochs = getattr(rule, "num_epochs", None)
    length = total_steps
    if num_epochs is not None:
        length = min(max(round(num_epochs * steps_per_epoch), 1), total_steps)
    try:
        schedule = optim.make_schedule(
            rule.schedule,
            total_steps=length,
            warmup_steps=round(rule.warmup_epochs * steps_per_epoch),
            cooldown_steps=round(rule.cooldown_epochs * steps_per_epoch),
            milestones=rule.milestones,
            drop_factor=rule.drop_factor,
        )
    except ValueError as error:  # it begins with the field's name
        raise ValueError(f"config.{section}.{error}") from error
    if length < total_steps:
        parts = [schedule, optax.constant_schedule(0.0)]
        schedule = optax.join_schedules(parts, [length])
    numbers = {
        "learning_rate": rule.learning_rate,
        "weight_decay": rule.weight_decay,
        **rule.arguments,
    }
    numbers = {k: swept.get(f"{section}.{k}", v) for k, v in numbers.items()}
    return optim.make_rule(
        rule.name, schedule, weight_decay_mask=rule.weight_decay_mask, **numbers
    )


def check_groups(groups: Mapping[str, GroupConfig], params: Any) -> None:
    """Raise ValueError unless every group has parameters, which are in no other one."""
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    owners: dict[str, str] = {}
    for section, group in groups.items():
        found = [path for path in flat if re.search(group.params, path)]
        if not found:
            raise ValueError(
                f"config.{section}.params must fit a parameter of the model, such as "
                f"{list(flat)[-1]!r}, got {group.params!r}"
            )
        for path in found:
            if path in owners:
                raise ValueError(
                    f"config.{section}.params must fit no parameter of another group, "
                    f"got {group.params!r}, which fits {path!r} as "
                    f"config.{owners[path]} does"
                )
            owners[path] = section
    frozen = {name for name, group in groups.items() if not group.learning_rate}
    if all(owners.get(path) in frozen for path in flat):
        raise ValueError(
            "config.freeze and config.groups freeze every parameter; at least one "
            "must be trained, such as a head, which this model does not have"
        )
