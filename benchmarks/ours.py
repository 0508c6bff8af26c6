"""This project's models and training steps, on random images."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from benchmarks.cases import Case
from train_jax.config.config import resolve
from train_jax.config.fields import Config
from train_jax.data import ImageSplit
from train_jax.run import initial_state, trainer_setup
from train_jax.run import model as run_model
from train_jax.run import task as run_task
from train_jax.run.runs import make_runs
from train_jax.tasks import Task

# The schedule of the learning rate does not end before a benchmark does.
_NUM_STEPS = 1_000_000


def make_program(
    case: Case,
    num_steps: int,
    *,
    devices: Sequence[Any] | None = None,
    train: ImageSplit | None = None,
    **fields: Any,
) -> Callable[[], None]:
    """Make a program that trains for a number of steps each time it is called.

    Args:
        case: the model and its images.
        num_steps: number of steps in a call.
        devices: all of them if not given.
        train: the images; random ones in memory if not given.
        **fields: more fields of the config.
    """
    if train is None:
        train = _make_images(case, 8 * case.batch_size)
    config, task, model = _make_model(case, train, **fields)
    runs = make_runs(config, devices=devices)
    _, init_state = initial_state.make_initial_state(config, model, task, runs)
    trainer = trainer_setup.make_trainer(config, model, task, train, runs)
    state = init_state()
    trainer.compile(state)
    step = 0

    def take_steps() -> None:
        nonlocal state, step
        state = jax.block_until_ready(trainer.take_steps(num_steps, state, step))
        # In memory it stays in one epoch, whose order is at hand.
        step += num_steps * train.is_streamed

    return take_steps


def make_model(case: Case) -> nn.Module:
    """Build the model as the trainer does on this device."""
    _, _, model = _make_model(case, _make_images(case, 1))
    return model


def _make_model(
    case: Case, train: ImageSplit, **fields: Any
) -> tuple[Config, Task, nn.Module]:
    given = {"batch_size": case.batch_size, "num_steps": _NUM_STEPS}
    config = resolve(given | case.fields | fields)
    task = run_task.make_task(config.dataset, config.augment, train)
    return config, task, run_model.make_model(config, task)


def _make_images(case: Case, count: int) -> ImageSplit:
    """Make up labelled images."""
    generator = np.random.default_rng(0)
    return ImageSplit(
        generator.integers(0, 256, (count, *case.image_shape), dtype=np.uint8),
        generator.integers(0, case.num_classes, count, dtype=np.int32),
        tuple(map(str, range(case.num_classes))),
    )
