"""This project's side: the trainer's own compiled steps, on images made up."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.cases import Case
from train_jax.config.config import resolve
from train_jax.data import ImageSplit
from train_jax.devices import sharding
from train_jax.run.epoch import EpochRunner
from train_jax.run.experiment import Experiment, make_model, make_task
from train_jax.run.runs import Runs


def make_experiment(
    case: Case, *, devices: list[Any] | None = None, **fields: Any
) -> Experiment:
    """Set up an experiment on random images.

    Args:
        case: the model and its images.
        devices: all of them if not given.
        **fields: more fields of the config.
    """
    num_examples, num_classes = case.batch_size * 8, case.num_classes
    generator = np.random.default_rng(0)
    names = tuple(map(str, range(num_classes)))
    split = ImageSplit(
        generator.integers(0, 256, (num_examples, *case.image_shape), dtype=np.uint8),
        generator.integers(0, num_classes, num_examples).astype(np.int32),
        names,
    )
    config = resolve(case.fields | {"batch_size": case.batch_size} | fields)
    runs, task = Runs.of(config), make_task(config, split)
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
        steps_per_epoch=num_examples // config.batch_size,
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
