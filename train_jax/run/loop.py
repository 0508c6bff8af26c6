"""The training loop: after each epoch validate, report, and save a checkpoint."""

import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from train_jax.devices import processes
from train_jax.learning.state import (
    TrainState,
    has_finite_params,
    kernel_checksums,
)
from train_jax.output.checkpoint import NOT_SCORED
from train_jax.output.metrics import mean, metrics_to_json
from train_jax.output.report import Report
from train_jax.run.checkpointing import SaveSchedule
from train_jax.run.evaluator import Evaluation
from train_jax.run.failures import NonFiniteError
from train_jax.run.profiler import Profiler
from train_jax.run.trainer import Trainer

Record = dict[str, Any]


def train(
    state: TrainState,
    records: list[Record],
    *,
    trainer: Trainer,
    validate: Callable[[Any], Evaluation | None],
    report: Report,
    save: Callable[..., None],
    save_schedule: SaveSchedule,
    should_stop: Callable[[], bool],
    profiler: Profiler,
    frozen: Sequence[str] = (),
) -> TrainState:
    """Train to the end; after each epoch validate and report, save when it is due.

    Args:
        state: to go on from; is donated.
        records: the metrics of the epochs before; those of each epoch are appended.
        trainer: compiled; takes the steps.
        validate: evaluates variables on the validation split, if there is one.
        report: shows the progress and logs the metrics.
        save: `save_checkpoint` with the first two arguments.
        save_schedule: when to save.
        should_stop: asked every few seconds whether to save and stop.
        profiler: records a trace of some steps.
        frozen: regular expressions that fit the parameters which are not trained.

    Returns:
        The last state, which is not that of the end if it was asked to stop.

    Raises:
        NonFiniteError: if the loss is finite in no run any more.
    """
    step, is_asked = state.steps_done, False
    checksums = kernel_checksums(state.params) if step == 0 else {}
    while step < trainer.total_steps and not is_asked:
        profiler.reach(step)
        state, record = trainer.run(
            state,
            report.show_progress,
            lambda: should_stop() or save_schedule.is_late(),
            stop_every=save_schedule.every_steps,
            stop_at=profiler.steps,
        )
        step, score = state.steps_done, NOT_SCORED
        if record is not None:
            score = _add_validation(record, validate(state.eval_variables))
            records.append(metrics_to_json(record))
            report.log_epoch(records[-1])
            # A warm-up begins with a rate of 0. Behind a head of zeros nothing moves
            # before the head has.
            if checksums and step > 2 and np.any(record["learning_rate"] > 0):
                _warn_if_unchanged(checksums, state, frozen)
                checksums = {}
        is_asked, late = processes.max_over_processes(
            should_stop(), save_schedule.is_late()
        )
        is_due = save_schedule.is_due(step)
        if is_asked or late or is_due:
            # Which step is the best must not depend on when the run was stopped.
            score = score if is_due else NOT_SCORED
            # A loss may be finite whose gradient is not.
            if score == NOT_SCORED and not has_finite_params(state):
                raise NonFiniteError(step, found="parameters are not finite after")
            save(
                step,
                state,
                records=records,
                epoch_seconds=trainer.epoch_seconds,
                score=score,
            )
            save_schedule.note_save()
    profiler.reach(step)
    return state


def _add_validation(record: Record, val: Evaluation | None) -> float:
    """Add an evaluation to an epoch's metrics; returns the mean accuracy, if any.

    Raises:
        NonFiniteError: if the loss is finite in no run.
    """
    if val is None:
        return NOT_SCORED
    if not np.isfinite(val.loss_R).any():
        found = "the validation loss is not finite after"
        raise NonFiniteError(record["step"], found=found)
    record |= {"val_loss": val.loss_R, "val_accuracy": val.accuracy_R}
    return mean(val.accuracy_R)


def _warn_if_unchanged(
    before: dict[str, int], state: TrainState, frozen: Sequence[str]
) -> None:
    """Warn of kernels that the first steps have not changed."""
    after = kernel_checksums(state.params)
    unchanged = [
        name
        for name, checksum in before.items()
        if after[name] == checksum
        and not any(re.search(params, name) for params in frozen)
    ]
    if unchanged and processes.is_main():
        more = f" and {len(unchanged) - 3} more" if len(unchanged) > 3 else ""
        print(
            f"warning: {state.steps_done} steps have not changed "
            f"{', '.join(unchanged[:3])}{more}; is config.optimizer.learning_rate too "
            "small?",
            file=sys.stderr,
        )
