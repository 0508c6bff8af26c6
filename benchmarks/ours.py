"""This project's side: the trainer's own compiled steps, on images made up."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from train_jax import sharding
from train_jax.config import resolve
from train_jax.data import Split
from train_jax.epoch import EpochRunner
from train_jax.experiment import Experiment, make_model, make_task
from train_jax.runs import Runs


def make_experiment(
    fields: dict[str, Any],
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    num_examples: int,
    devices: list[Any] | None = None,
) -> Experiment:
    """Set up an experiment on random images.

    Args:
        fields: of the config.
        image_shape: height, width, channels.
        num_classes: number of classes.
        num_examples: number of images.
        devices: all of them if not given.
    """
    generator = np.random.default_rng(0)
    names = tuple(map(str, range(num_classes)))
    split = Split(
        generator.integers(0, 256, (num_examples, *image_shape), dtype=np.uint8),
        generator.integers(0, num_classes, num_examples).astype(np.int32),
        num_classes,
        names,
    )
    config = resolve(fields)
    runs, task = Runs.of(config), make_task(config, split)
    steps_per_epoch = num_examples // config.batch_size
    return Experiment(
        config=config,
        workdir=pathlib.Path(),
        train=split,
        val=split,
        test=split,
        task=task,
        model=make_model(config, task),
        runs=runs,
        mesh=sharding.make_mesh(len(runs), devices=devices),
        steps_per_epoch=steps_per_epoch,
        total_steps=1_000_000,
    )


def make_steps(experiment: Experiment, num_steps: int) -> Callable[[], None]:
    """Make a program that trains for a number of steps each time it is called."""
    state = experiment.first_state()
    runner = EpochRunner(experiment, state)
    order = runner.order(0)

    def take_steps() -> None:
        nonlocal state
        state = jax.block_until_ready(runner.take_steps(num_steps, state, order))

    return take_steps
