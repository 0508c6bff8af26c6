"""Make the training steps and the trainer from the config."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from train_jax.config.fields import MOST_STEPS, Config
from train_jax.data import Split
from train_jax.data.loader import Batches, default_workers, threads_of_each
from train_jax.devices import policy, sharding
from train_jax.learning.batch import (
    batch_of_step,
    epoch_order,
    select_examples,
    take_loaded,
)
from train_jax.learning.step import make_next_step, make_train_step
from train_jax.run.feed import Feed, MemoryFeed, StepIndices, StreamFeed
from train_jax.run.optimizer import build_optimizer, make_loss, param_groups
from train_jax.run.runs import Runs
from train_jax.run.steps import Steps
from train_jax.run.trainer import Trainer
from train_jax.tasks import Task


def check_batch_size(config: Config, runs: Runs) -> None:
    """Raise ValueError unless the devices of a run can share each part of a batch."""
    num_devices = runs.mesh.shape[sharding.DATA_AXIS]
    size, parts = config.batch_size, config.accumulation_steps
    factor = num_devices * parts
    if size % factor:
        below, above = size // factor * factor, -(-size // factor) * factor
        nearest = f"{below} or {above}" if below else f"{above}"
        raise ValueError(
            f"config.batch_size must be divisible by {factor} ({num_devices} devices × "
            f"{parts} accumulation_steps), such as {nearest}, got {size}"
        )


def count_steps(config: Config, num_examples: int) -> tuple[int, int]:
    """Count the steps of an epoch, and of the whole training.

    Raises:
        ValueError: if there is no whole batch, too many steps, or none to profile.
    """
    if config.batch_size > num_examples:
        raise ValueError(
            f"config.batch_size must be at most {num_examples}, the number of examples "
            f"in {config.dataset.train_split!r}, got {config.batch_size}"
        )
    steps_per_epoch = num_examples // config.batch_size
    total_steps = config.num_steps or config.num_epochs * steps_per_epoch
    if total_steps > MOST_STEPS:
        raise ValueError(
            f"config.num_epochs must be at most {MOST_STEPS // steps_per_epoch}, as "
            f"steps are counted in int32, got {config.num_epochs}"
        )
    if config.profile_steps is not None and config.profile_steps[0] >= total_steps:
        raise ValueError(
            f"config.profile_steps must begin before step {total_steps}, the last one, "
            f"got {config.profile_steps}"
        )
    return steps_per_epoch, total_steps


def make_steps(
    config: Config, model: nn.Module, task: Task, train: Split, runs: Runs
) -> Steps:
    """Make the training steps; they are compiled later.

    Raises:
        ValueError: see `count_steps` and `build_optimizer`.
    """
    check_batch_size(config, runs)
    steps_per_epoch, total_steps = count_steps(config, len(train))
    tx = build_optimizer(
        config.optimizer,
        param_groups(config),
        # The values are read from each run's state; these only mark what is swept.
        {field: values[0] for field, values in runs.swept.items()},
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
    )
    how: dict[str, Any] = {}
    platform = runs.devices[0].platform
    jit = policy.jit_of_model(model, platform=platform)
    in_a_loop = policy.runs_steps_in_a_loop(model, platform=platform)
    if config.fsdp:
        model = sharding.gather_kernels(model, runs.mesh)
        how["gather_params"] = functools.partial(sharding.gather_rest, mesh=runs.mesh)
    train_step = make_train_step(
        make_loss(config, model),
        tx,
        accumulation_steps=config.accumulation_steps,
        **how,
    )
    look_up = policy.is_single_cpu(runs.devices)
    select = functools.partial(take_loaded, look_up=look_up)
    if not train.is_streamed:
        select = functools.partial(
            select_examples,
            batch_size=config.batch_size,
            batch_sharding=sharding.batch_sharding(runs.mesh),
            shapes=[x.shape[1:] for x in train.examples],
        )
    next_batch = functools.partial(
        batch_of_step, task.make_batch, select, steps_per_epoch=steps_per_epoch
    )
    next_step = make_next_step(train_step, next_batch, steps_per_epoch=steps_per_epoch)
    data = _abstract_inputs(train, config.batch_size, runs)
    return Steps(
        next_step=next_step,
        next_batch=next_batch,
        inputs=(*data, runs.abstract_keys()["steps"]),
        map_runs=runs.map,
        per_epoch=steps_per_epoch,
        total=total_steps,
        jit=jit,
        in_a_loop=in_a_loop,
    )


def _abstract_inputs(train: Split, batch_size: int, runs: Runs) -> tuple[Any, Any]:
    """Describe the examples that a step is given, and their order or indices."""
    if train.is_streamed:
        examples = tuple(
            jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype)
            for x in train.examples
        )
        indices = jax.ShapeDtypeStruct((batch_size,), np.int32)
        batch_sharding = sharding.batch_sharding(runs.mesh)
        return sharding.abstract((examples, indices), batch_sharding)
    order = jax.eval_shape(
        _make_shuffle(train, runs), runs.abstract_keys()["order"], np.int32(0)
    )
    examples = tuple(
        jax.ShapeDtypeStruct((len(x), math.prod(x.shape[1:])), x.dtype)
        for x in train.examples
    )
    everywhere = sharding.replicated(runs.mesh)
    return sharding.abstract((examples, order), everywhere)


def _make_shuffle(train: Split, runs: Runs) -> Any:
    """Make the function of all runs, (key, epoch) → the order of its examples."""
    shuffle = functools.partial(epoch_order, num_examples=len(train))
    return runs.map(shuffle, in_axes=(0, None))


def make_trainer(
    config: Config, model: nn.Module, task: Task, train: Split, runs: Runs
) -> Trainer:
    """Make the trainer; see `make_steps`."""
    steps = make_steps(config, model, task, train, runs)
    return Trainer(
        steps,
        _make_feed(config, train, runs, steps),
        runs.keys["steps"],
        examples_per_step=config.batch_size * len(runs),
    )


def _make_feed(config: Config, train: Split, runs: Runs, steps: Steps) -> Feed:
    """Make what gives the steps their examples."""
    if not train.is_streamed:
        everywhere = sharding.replicated(runs.mesh)
        shuffle = jax.jit(_make_shuffle(train, runs), out_shardings=everywhere)
        return MemoryFeed(
            [np.asarray(x).reshape(len(x), -1) for x in train.examples],
            functools.partial(shuffle, runs.keys["order"]),
            steps_per_epoch=steps.per_epoch,
            examples_sharding=everywhere,
        )
    batch_sharding = sharding.batch_sharding(runs.mesh)
    rows = sharding.local_rows(config.batch_size, batch_sharding)
    key_data = np.asarray(jax.random.key_data(runs.keys["order"]))
    workers = config.dataset.num_workers
    workers = default_workers() if workers is None else workers
    return StreamFeed(
        Batches(
            train.examples,
            StepIndices(key_data, len(train), config.batch_size, rows),
            steps.total,
            crop_area=config.augment.crop_area,
            seed=key_data.tolist(),
            num_threads=threads_of_each(workers),
        ),
        batch_size=config.batch_size,
        batch_sharding=batch_sharding,
        num_workers=workers,
    )
