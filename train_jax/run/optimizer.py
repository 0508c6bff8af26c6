"""Build the loss and the optimiser: groups of parameters, and frozen ones."""

import functools
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.traverse_util
import optax

from train_jax.config.fields import Config
from train_jax.config.optimizer_fields import GroupConfig, OptimizerConfig, UpdateConfig
from train_jax.learning import optim
from train_jax.learning.step import Loss, loss_of_batch


def param_groups(config: Config) -> dict[str, GroupConfig]:
    """Map the field that declares each group of parameters to the group."""
    groups = {f"groups.{name}": group for name, group in config.groups.items()}
    if config.freeze is None:
        return groups
    frozen = GroupConfig(params="^(?!head/)", learning_rate=0.0)
    return {"freeze": frozen, **groups}


def frozen_params(config: Config) -> list[str]:
    """List the regular expressions that fit the parameters which are not trained."""
    groups = param_groups(config).values()
    return [group.params for group in groups if group.is_frozen]


def make_loss(config: Config, model: nn.Module) -> Loss:
    """Make the loss of a batch, with the model and what the config freezes."""
    return functools.partial(
        loss_of_batch,
        model,
        frozen=frozen_params(config),
        train=config.freeze is None,
    )


def build_optimizer(
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
        _make_update_rule("optimizer", optimizer, swept, **lengths),
        clip_norm=swept.get("optimizer.clip_norm", optimizer.clip_norm),
        layer_decay=optimizer.layer_decay,
        groups={
            group.params: _make_update_rule(section, group, swept, **lengths)
            for section, group in groups.items()
            if not group.is_frozen
        },
        frozen=[group.params for group in groups.values() if group.is_frozen],
    )


def _make_update_rule(
    section: str,
    update: UpdateConfig,
    swept: Mapping[str, Any],
    *,
    steps_per_epoch: int,
    total_steps: int,
) -> optax.GradientTransformation:
    """Make the update rule that a section describes."""
    num_epochs = getattr(update, "num_epochs", None)
    length = total_steps
    if num_epochs is not None:
        length = min(max(round(num_epochs * steps_per_epoch), 1), total_steps)
    try:
        schedule = optim.make_schedule(
            update.schedule,
            total_steps=length,
            warmup_steps=round(update.warmup_epochs * steps_per_epoch),
            cooldown_steps=round(update.cooldown_epochs * steps_per_epoch),
            milestones=update.milestones,
            drop_factor=update.drop_factor,
        )
    except ValueError as error:  # it begins with the field's name
        raise ValueError(f"config.{section}.{error}") from error
    if length < total_steps:
        parts = [schedule, optax.constant_schedule(0.0)]
        schedule = optax.join_schedules(parts, [length])
    hyperparams = {
        "learning_rate": update.learning_rate,
        "weight_decay": update.weight_decay,
        **update.arguments,
    }
    hyperparams = {k: swept.get(f"{section}.{k}", v) for k, v in hyperparams.items()}
    return optim.make_update_rule(
        update.name, schedule, weight_decay_mask=update.weight_decay_mask, **hyperparams
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
    frozen = {name for name, group in groups.items() if group.is_frozen}
    if all(owners.get(path) in frozen for path in flat):
        raise ValueError(
            "config.freeze and config.groups freeze every parameter; at least one "
            "must be trained, such as a head, which this model does not have"
        )
