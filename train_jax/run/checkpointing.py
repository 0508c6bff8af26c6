"""Save checkpoints of a run, and resume from them."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from train_jax import tasks
from train_jax.data import Split
from train_jax.data.split import first_change
from train_jax.learning.state import TrainState
from train_jax.output import checkpoint, summary
from train_jax.output import workdir as wd
from train_jax.output.checkpoint import CheckpointError, Checkpoints
from train_jax.tasks import Task


class SaveSchedule:
    """When to save a checkpoint.

    Attributes:
        every_steps: also save after every so many steps within an epoch; None not to.
    """

    def __init__(
        self,
        steps_per_save: int,
        *,
        total_steps: int,
        every_steps: int | None = None,
        every_minutes: float | None = None,
    ):
        """Start now.

        Args:
            steps_per_save: save after every so many steps, at the end of an epoch.
            total_steps: and after the last one.
            every_steps: see the class.
            every_minutes: save after so long without a checkpoint.
        """
        self.every_steps = every_steps
        self._total_steps = total_steps
        self._periods = [steps_per_save, *([every_steps] if every_steps else [])]
        self._seconds = float("inf") if every_minutes is None else 60 * every_minutes
        self._saved_at = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Whether to save after a step."""
        is_last = step == self._total_steps
        return is_last or any(step % period == 0 for period in self._periods)

    def is_late(self) -> bool:
        """Whether the last checkpoint is too old."""
        return time.monotonic() - self._saved_at >= self._seconds

    def note_save(self) -> None:
        """Take note that a checkpoint was saved now."""
        self._saved_at = time.monotonic()


def run_metadata(
    fields: wd.Fields, task: Task, splits: Sequence[Split | None]
) -> dict[str, Any]:
    """Make the metadata that all checkpoints of a run have, and a resume compares.

    Args:
        fields: the run's config.
        task: its task.
        splits: for training, validation and test.
    """
    return {
        "config": fields,
        "task": tasks.task_to_json(task),
        "num_examples": [len(split or ()) for split in splits],
        "files_checksums": [split and split.files_checksum for split in splits],
    }


def save_checkpoint(
    checkpoints: Checkpoints,
    metadata: Mapping[str, Any],
    step: int,
    state: TrainState,
    *,
    records: Sequence[dict[str, Any]],
    epoch_seconds: float,
    score: float,
) -> None:
    """Save a state, and what else the next start needs.

    Args:
        checkpoints: of the run.
        metadata: of the run, see `run_metadata`.
        step: number of steps taken.
        state: the state after them.
        records: the metrics of the epochs.
        epoch_seconds: how long the steps of the current epoch have taken.
        score: see `Checkpoints.save`.
    """
    progress = {"epoch_seconds": epoch_seconds, "metrics": list(records)}
    versions = {"versions": summary.versions()}
    checkpoints.save(step, state, {**metadata, **versions, **progress}, score=score)


def read_newest_metadata(
    checkpoints: Checkpoints, current: Mapping[str, Any], *, total_steps: int
) -> dict[str, Any]:
    """Read the newest checkpoint's metadata; refuse another config or other data.

    Args:
        checkpoints: of the run.
        current: metadata of this start, see `run_metadata`.
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
    changes = wd.differences(metadata["config"], current["config"], but=wd.LENGTH)
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
        ("num_examples", metadata.get("num_examples"), current["num_examples"]),
        *(
            (name, metadata["task"].get(name), current["task"].get(name))
            for name in ("image_shape", "class_names")
        ),
    ):
        change = before and first_change(before, now)
        if change:
            raise CheckpointError(
                f"checkpoint {step} is of other data: {name} had {change}; restore the "
                "data, or start anew (--overwrite)"
            )
    checksums = current["files_checksums"]
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
