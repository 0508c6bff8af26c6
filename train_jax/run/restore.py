"""Restore a run from its newest checkpoint, to train on, or from its best, to test."""

from collections.abc import Callable
from typing import Any

from train_jax.learning.state import TrainState
from train_jax.output import checkpoint
from train_jax.output import workdir as wd
from train_jax.output.checkpoint import CheckpointError, Checkpoints


def read_progress(
    checkpoints: Checkpoints, fields: wd.Fields, *, total_steps: int
) -> dict[str, Any]:
    """Read how far a run has come: the metadata of its newest checkpoint.

    Args:
        checkpoints: of the run.
        fields: its config.
        total_steps: length of the training.

    Returns:
        The metadata; those of a run that begins, without a checkpoint.

    Raises:
        CheckpointError: if it is the checkpoint of another run.
    """
    step = checkpoints.newest
    if step is None:
        return {"epoch_seconds": 0.0, "metrics": []}
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
    return metadata


def load_state(
    checkpoints: Checkpoints,
    abstract_state: TrainState,
    init_state: Callable[[], TrainState],
) -> TrainState:
    """Restore the newest checkpoint; without one, draw the state to start from.

    Args:
        checkpoints: of the run.
        abstract_state: shapes, dtypes and shardings of the state.
        init_state: draws the state to start from.
    """
    if checkpoints.newest is None:
        return init_state()
    return checkpoint.restore(checkpoints.directory, checkpoints.newest, abstract_state)


def restore_best(
    checkpoints: Checkpoints, abstract_state: TrainState, last_step: int
) -> tuple[int, Any] | None:
    """Restore the best checkpoint's step and variables; None if it is the last."""
    checkpoints.wait()
    best = checkpoints.best()
    if best is None or best == last_step:
        return None
    state = checkpoint.restore(checkpoints.directory, best, abstract_state)
    return best, state.eval_variables
