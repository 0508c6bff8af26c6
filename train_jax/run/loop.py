"""The training loop: after each epoch validate, report, and save a checkpoint."""

import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from train_jax.devices import processes
from train_jax.learning.state import TrainState, kernel_checksums
from train_jax.output.checkpoint import NOT_SCORED
from train_jax.output.metrics import mean, metrics_to_json
from train_jax.output.report import Report
from train_jax.run.epoch import NonFiniteError, Trainer
from train_jax.run.evaluate import Evaluation

Record = dict[str, Any]


class SavePolicy(NamedTuple):
    """When to save a checkpoint, beside the end of the training.

    Attributes:
        periods: after every so many steps.
        pause_every: the one of them that does not end with an epoch, if any.
        minutes: after so long without a checkpoint; None for never.
    """

    periods: tuple[int, ...]
    pause_every: int | None = None
    minutes: float | None = None

    def is_due(self, step: int) -> bool:
        """Whether to save after a step."""
        return any(step % period == 0 for period in self.periods)

    def is_late(self, saved_at: float) -> bool:
        """Whether the last checkpoint, at a time of `time.monotonic`, is too old."""
        if self.minutes is None:
            return False
        return time.monotonic() - saved_at >= 60 * self.minutes


def train(
    state: TrainState,
    records: list[Record],
    *,
    trainer: Trainer,
    validate: Callable[[Any], Evaluation],
    report: Report,
    save: Callable[..., None],
    save_policy: SavePolicy,
    should_stop: Callable[[], bool],
) -> TrainState:
    """Train to the end; after each epoch validate and report, save when it is due.

    Args:
        state: to go on from; is donated.
        records: the metrics of the epochs before; those of each epoch are appended.
        trainer: compiled; takes the steps.
        validate: evaluates variables on the validation split.
        report: shows the progress and logs the metrics.
        save: (step, state, score=score) saves a checkpoint.
        save_policy: when to save.
        should_stop: asked every few seconds whether to save and stop.

    Returns:
        The last state: that of the end, unless it was asked to stop.

    Raises:
        NonFiniteError: if the loss is not finite any more.
    """
    step, total_steps = state.steps_done, trainer.total_steps
    checksums = kernel_checksums(state.params) if step == 0 else None
    is_asked, saved_at = False, time.monotonic()
    while step < total_steps and not is_asked:

        def should_pause(saved_at: float = saved_at) -> bool:
            return should_stop() or save_policy.is_late(saved_at)

        state, record = trainer.run(
            state,
            report.show_progress,
            should_pause,
            pause_every=save_policy.pause_every,
        )
        step, score = state.steps_done, NOT_SCORED
        if record is not None:
            val = validate(state.eval_variables)
            if not np.isfinite(val.loss_R).any():
                raise NonFiniteError(step)
            record |= {"val_loss": val.loss_R, "val_accuracy": val.accuracy_R}
            score = mean(val.accuracy_R)
            records.append(metrics_to_json(record))
            report.log_epoch(records[-1])
            if checksums is not None:
                _warn_if_unchanged(checksums, kernel_checksums(state.params))
                checksums = None
        is_asked, is_late = processes.max_over_processes(
            should_stop(), save_policy.is_late(saved_at)
        )
        if is_asked or is_late or step == total_steps or save_policy.is_due(step):
            save(step, state, score=score)
            saved_at = time.monotonic()
    return state


def _warn_if_unchanged(before: dict[str, int], after: dict[str, int]) -> None:
    """Warn of kernels that an epoch of training has not changed."""
    unchanged = [name for name, checksum in before.items() if after[name] == checksum]
    if unchanged and processes.is_main():
        more = f" and {len(unchanged) - 3} more" if len(unchanged) > 3 else ""
        print(
            f"warning: the first epoch has not changed {', '.join(unchanged[:3])}"
            f"{more}; is config.optimizer.learning_rate too small?",
            file=sys.stderr,
        )
