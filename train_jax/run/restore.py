"""Restore a run from its checkpoints: to train on, or to use the model."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from train_jax import tasks
from train_jax.config.config import resolve
from train_jax.config.fields import Config
from train_jax.data import ImageSplit, SequenceSplit
from train_jax.learning.state import TrainState
from train_jax.output import checkpoint
from train_jax.output import workdir as wd
from train_jax.output.checkpoint import CheckpointError, Checkpoints
from train_jax.run.build import make_model
from train_jax.run.setup import make_runs, make_start
from train_jax.run.splits import load
from train_jax.tasks import Task


def start_or_resume(
    checkpoints: Checkpoints,
    fields: wd.Fields,
    abstract_state: TrainState,
    init_state: Callable[[], TrainState],
    *,
    total_steps: int,
) -> tuple[TrainState, dict[str, Any]]:
    """Restore the newest checkpoint; without one, draw the state to start from.

    Args:
        checkpoints: of the run.
        fields: its config.
        abstract_state: shapes, dtypes and shardings of the state.
        init_state: draws the state to start from.
        total_steps: length of the training.

    Returns:
        The state, and the metadata saved with it.

    Raises:
        CheckpointError: if it is the checkpoint of another run.
    """
    step = checkpoints.newest
    if step is None:
        return init_state(), {"epoch_seconds": 0.0, "metrics": []}
    metadata = checkpoint.read_metadata(checkpoints.directory, step)
    # How long to train is decided by the folder's config: see `check_workdir`.
    changes = wd.differences(metadata["config"], fields, but=wd.LENGTH)
    if changes:
        raise CheckpointError(
            f"checkpoint {step} is of another config: {'; '.join(changes)}"
        )
    if step > total_steps:
        raise CheckpointError(
            f"checkpoint {step} is of a longer training than the config's "
            f"{total_steps} steps"
        )
    return checkpoint.restore(checkpoints.directory, step, abstract_state), metadata


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """A trained model, restored from a checkpoint.

    Attributes:
        config: the run's config.
        task: the task it was trained on.
        model: the module.
        variables: the variables to evaluate with.
        step: number of training steps.
    """

    config: Config
    task: Task
    model: nn.Module
    variables: Any
    step: int

    @property
    def model_name(self) -> str:
        """The name of the model in the config."""
        return self.config.model.name

    def load_test(self) -> ImageSplit | SequenceSplit:
        """Load the test split."""
        return load(self.config.dataset, self.config.dataset.test_split)[0]


def load_model(
    workdir: pathlib.Path, *, run: int = 0, which: str = "last"
) -> TrainedRun:
    """Restore a trained model.

    Args:
        workdir: the run's folder; of it, only `checkpoints/` is used.
        run: which one, from 0, if several were trained in one program.
        which: "last", "best" (by validation) or the step of a checkpoint.

    Raises:
        ValueError: if the folder holds no such checkpoint that is complete, or not so
            many runs.
    """
    directory = workdir / wd.CHECKPOINTS
    step = checkpoint.find(directory, which)
    if step is None:
        raise ValueError(f"--workdir {str(workdir)!r} holds no checkpoint")
    try:
        metadata = checkpoint.read_metadata(directory, step)
    except OSError as error:
        raise ValueError(f"checkpoint {step} cannot be read: {error}") from error
    fields = metadata["config"]
    if "model.attention_implementation" in fields:
        # That of the training may not exist on this device; the weights fit any.
        fields["model.attention_implementation"] = "own"
    config, task = resolve(fields), tasks.from_json(metadata["task"])
    runs = make_runs(config, devices=jax.devices()[:1])
    if not 0 <= run < len(runs):
        raise ValueError(f"--run must be in [0, {len(runs) - 1}], got {run}")
    model = make_model(config, task)
    abstract_state, _ = make_start(config, model, task, runs)
    state = checkpoint.restore(directory, step, abstract_state)
    variables = runs.select(state.eval_variables, run)
    return TrainedRun(config, task, model, variables, step)
