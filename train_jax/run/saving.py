"""When checkpoints are saved, and what is saved with the state."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from train_jax import tasks
from train_jax.data import Split
from train_jax.learning.state import TrainState
from train_jax.output import summary
from train_jax.output import workdir as wd
from train_jax.output.checkpoint import Checkpoints
from train_jax.run.epoch import Trainer
from train_jax.tasks import Task


class SaveSchedule:
    """When to save a checkpoint.

    Attributes:
        pause_every: the period in steps that need not end with an epoch, if any.
    """

    def __init__(
        self,
        periods: Sequence[int],
        *,
        pause_every: int | None = None,
        minutes: float | None = None,
    ):
        """Start now.

        Args:
            periods: save after every so many steps.
            pause_every: likewise, also within an epoch.
            minutes: save after so long without a checkpoint.
        """
        self.pause_every = pause_every
        self._periods = [*periods, *([pause_every] if pause_every else [])]
        self._seconds = float("inf") if minutes is None else 60 * minutes
        self._saved_at = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Whether to save after a step."""
        return any(step % period == 0 for period in self._periods)

    def is_late(self) -> bool:
        """Whether the last checkpoint is too old."""
        return time.monotonic() - self._saved_at >= self._seconds

    def note_save(self) -> None:
        """Take note that a checkpoint was saved now."""
        self._saved_at = time.monotonic()


def describe_run(
    fields: wd.Fields, task: Task, splits: Sequence[Split | None]
) -> dict[str, Any]:
    """Collect what a checkpoint says about its run, and a resume compares.

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


def make_save(
    checkpoints: Checkpoints,
    facts: Mapping[str, Any],
    trainer: Trainer,
    records: Sequence[dict[str, Any]],
) -> Callable[..., None]:
    """Make the function that saves a checkpoint, which can be used on its own.

    Args:
        checkpoints: of the run.
        facts: about the run, see `describe_run`.
        trainer: measures how long the epoch takes.
        records: the metrics of the epochs.
    """

    def save(step: int, state: TrainState, *, score: float) -> None:
        metadata = {
            **facts,
            "versions": summary.versions(),
            "epoch_seconds": trainer.seconds,
            "metrics": list(records),
        }
        checkpoints.save(step, state, metadata, score=score)

    return save
