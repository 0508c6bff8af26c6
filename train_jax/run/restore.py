"""Restore a run from its newest checkpoint, to train on, or from its best, to test."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from train_jax.data.split import first_change
from train_jax.learning.state import TrainState
from train_jax.output import checkpoint
from train_jax.output import workdir as wd
from train_jax.output.checkpoint import CheckpointError, Checkpoints


def read_progress(
    checkpoints: Checkpoints, facts: Mapping[str, Any], *, total_steps: int
) -> dict[str, Any]:
    """Read how far a run has come: the metadata of its newest checkpoint.

    Args:
        checkpoints: of the run.
        facts: about it, see `describe_run`.
        total_steps: length of the training.

    Returns:
        The metadata; those of a run that begins, without a checkpoint.

    Raises:
        CheckpointError: if it is the checkpoint of another run, or of other data.
    """
    step = checkpoints.newest
    if step is None:
        return {"epoch_seconds": 0.0, "metrics": []}
    metadata = checkpoint.read_metadata(checkpoints.directory, step)
    # How long to train is decided by the folder's config: see `check_workdir`.
    changes = wd.differences(metadata["config"], facts["config"], but=wd.LENGTH)
    if changes:
        raise CheckpointError(
            f"checkpoint {step} is of another config: {'; '.join(changes)}"
        )
    if step > total_steps:
        raise CheckpointError(
            f"checkpoint {step} is of a longer training than the config's "
            f"{total_steps} steps"
        )
    # With other data the order changes: training images could be in the test split.
    for name, before, now in (
        ("num_examples", metadata.get("num_examples"), facts["num_examples"]),
        *(
            (name, metadata["task"].get(name), facts["task"].get(name))
            for name in ("image_shape", "class_names")
        ),
    ):
        change = before and first_change(before, now)
        if change:
            raise CheckpointError(
                f"checkpoint {step} is of other data: {name} had {change}; restore the "
                "data, or start anew (--overwrite)"
            )
    checksums = facts["files_checksums"]
    if metadata.get("files_checksums", checksums) != checksums:
        raise CheckpointError(
            f"checkpoint {step} is of other data: pictures were added, removed or "
            "renamed; restore the data, or start anew (--overwrite)"
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


def variables_to_test(
    which: str,
    checkpoints: Checkpoints,
    last: TrainState,
    abstract_state: TrainState,
) -> tuple[int, Any]:
    """Choose the variables to test, and the step in which they were reached.

    Args:
        which: "last", or "best" by validation.
        checkpoints: of the run.
        last: the last state; is deleted if another one is restored, as there may be no
            room for both.
        abstract_state: shapes, dtypes and shardings of the state.
    """
    step = last.steps_done
    if which == "best":
        checkpoints.wait()
        best = checkpoints.best()
        if best is not None and best != step:
            jax.tree.map(lambda x: x.delete(), last)
            folder = checkpoints.directory
            return best, checkpoint.restore_variables(folder, best, abstract_state)
    return step, last.eval_variables
