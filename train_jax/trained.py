"""A run that was trained before: its model, its variables, its data."""

import dataclasses
import pathlib
from typing import Any

import flax.linen as nn
import jax

from train_jax import sharding
from train_jax import workdir as wd
from train_jax.checkpoint import Checkpoints
from train_jax.config import Config, resolve
from train_jax.data import Sequences, Split
from train_jax.experiment import load_split, make_model, make_optimizer, make_task
from train_jax.models import init_variables
from train_jax.state import TrainState
from train_jax.tasks import Task


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """What a run has learnt so far.

    Attributes:
        config: every field.
        test: the test split.
        task: what the model is to do with an example.
        model: the module.
        variables: those to evaluate with, from the newest checkpoint.
        step: number of training steps behind them.
    """

    config: Config
    test: Split | Sequences
    task: Task
    model: nn.Module
    variables: Any
    step: int


def load_trained(workdir: pathlib.Path) -> TrainedModel:
    """Load the newest checkpoint of a run, and the data it is tested on.

    Raises:
        ValueError: if the folder holds no run, or a run without a checkpoint.
    """
    if not (workdir / wd.CONFIG).is_file():
        raise ValueError(
            f"--workdir {str(workdir)!r} holds no run ({wd.CONFIG} is missing)"
        )
    config = resolve(wd.read_json(workdir / wd.CONFIG))
    if not (workdir / wd.CHECKPOINTS).is_dir():
        raise ValueError(f"--workdir {str(workdir)!r} holds no checkpoint")
    checkpoints = Checkpoints(workdir / wd.CHECKPOINTS, keep=config.checkpoint.keep)
    try:
        step = checkpoints.latest_step()
        if step is None:
            raise ValueError(f"--workdir {str(workdir)!r} holds no checkpoint")
        test = load_split(config, config.dataset.test_split)
        task = make_task(config, test)
        model = make_model(config, task)
        everywhere = sharding.replicated(sharding.make_mesh())
        template = _abstract_state(config, model, task)
        state = checkpoints.restore(step, template, everywhere)
    finally:
        checkpoints.close()
    return TrainedModel(config, test, task, model, state.eval_variables, step)


def _abstract_state(config: Config, model: nn.Module, task: Task) -> TrainState:
    """The structure of the run's state, without values."""
    _, tx = make_optimizer(config, steps_per_epoch=0, total_steps=1)

    def create(key: jax.Array) -> TrainState:
        variables = init_variables(model, key, task.inputs())
        return TrainState.create(variables, tx, ema=config.ema_decay is not None)

    return jax.eval_shape(create, jax.random.key(0))
