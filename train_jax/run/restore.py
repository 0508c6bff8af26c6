"""Restore a run from its newest checkpoint, to train on."""

from collections.abc import Callable
from typing import Any

from train_jax.learning.state import TrainState
from train_jax.output import checkpoint
from train_jax.output import workdir as wd
from train_jax.output.checkpoint import CheckpointError, Checkpoints


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
