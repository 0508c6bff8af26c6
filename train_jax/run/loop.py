"""The story of a run: data → model → steps → evaluation → checkpoints → report."""

import contextlib
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from train_jax.config.config import Config
from train_jax.config.models import (
    count_parameters,
    init_variables,
    kernel_checksums,
    list_layers,
)
from train_jax.devices import processes, sharding
from train_jax.learning.state import TrainState
from train_jax.output import checkpoint, plots, summary
from train_jax.output import workdir as wd
from train_jax.output.checkpoint import CheckpointError, Checkpoints
from train_jax.output.report import Report, print_layers
from train_jax.run.diagnose import find_first_nonfinite
from train_jax.run.epoch import EpochRunner, NonFiniteError
from train_jax.run.evaluate import Evaluation, Evaluator
from train_jax.run.experiment import Experiment

Record = dict[str, Any]


class Stopped(Exception):
    """The run was asked to stop, and has saved what the next start needs."""


class Failed(Exception):
    """The run cannot go on; what was saved before is intact."""


class Diverged(Failed):
    """The loss is not finite any more."""


def train_and_evaluate(
    experiment: Experiment,
    should_stop: Callable[[], bool] = lambda: False,
    *,
    overwrite: bool = False,
    extend: bool = False,
) -> dict[str, Any]:
    """Train to the end, from the newest checkpoint if there is one, then test.

    Args:
        experiment: what to train.
        should_stop: asked every few seconds whether to save and stop.
        overwrite: whether to delete the run that lies in the folder first.
        extend: whether a run may be trained longer than its schedule said.

    Returns:
        The summary, as it lies in summary.json; a finished run's is read from there.

    Raises:
        WorkdirError: if the folder may not be used, or cannot be written; nothing is
            changed then.
        Stopped: if it was asked to stop.
        Failed: if the folder cannot be written any more or its checkpoints cannot be
            read; it names the last good checkpoint.
        Diverged: if the loss is not finite any more; it names the step.
    """
    workdir, config = experiment.workdir, experiment.config
    result = None if overwrite else read_finished(workdir, config)
    if result is not None:
        return result
    with wd.opened(workdir, config, overwrite=overwrite, extend=extend) as check_lock:
        _announce(experiment)
        with _open_checkpoints(experiment, check_lock) as checkpoints:
            evaluator = Evaluator(experiment)
            state, records = _train(
                experiment, checkpoints, evaluator, should_stop, check_lock
            )
            step, variables = _to_test(experiment, checkpoints, state)
            test = evaluator(variables, experiment.test)
            check_lock()
            _plot(experiment, variables, records, test)
            result = summary.summarize(experiment, state, records, test, step)
            check_lock()
            wd.write_json(workdir / wd.SUMMARY, result)
    return result


def read_finished(workdir: pathlib.Path, config: Config) -> dict[str, Any] | None:
    """Read the summary of a run that is finished already, and say so; else None.

    Process 0 decides; in the others the summary is empty.
    """
    found: list[dict[str, Any] | None] = []
    processes.call_on_main(lambda: found.append(wd.read_summary(workdir, config)))
    result = found[0] if found else None
    (is_finished,) = processes.max_over_processes(result is not None)
    if not is_finished:
        return None
    print("this run is finished already")
    return result or {}


def _to_test(
    experiment: Experiment, checkpoints: Checkpoints, state: TrainState
) -> tuple[int, Any]:
    """The step and the variables that the test split is read with."""
    if experiment.config.test_checkpoint == "best":
        checkpoints.wait()
        best = checkpoint.find_best(checkpoints.directory) or state.steps_done
        step = processes.broadcast_from_main(best)
        if step != state.steps_done:
            state = _restore(experiment, checkpoints.directory, step)
    return state.steps_done, state.eval_variables


def _announce(experiment: Experiment) -> None:
    """Say what is going to be trained, on what."""
    config, runs = experiment.config, experiment.runs
    splits = (experiment.train, experiment.val, experiment.test)
    times = f"{len(runs)} runs of " if len(runs) > 1 else ""
    print(
        f"{times}{config.model.name} on {config.dataset.name}: "
        "{:,} examples to train on, {:,} to validate, {:,} to test; ".format(
            *map(len, splits)
        )
        + summary.describe_devices()
    )
    model, inputs = experiment.model, experiment.task.inputs()
    variables = jax.eval_shape(
        lambda key: init_variables(model, key, inputs), jax.random.key(0)
    )
    rows = list_layers(model, variables, inputs)
    print_layers(rows, count_parameters(variables["params"]))


@contextlib.contextmanager
def _open_checkpoints(
    experiment: Experiment, check_lock: Callable[[], object]
) -> Iterator[Checkpoints]:
    """Open the run's checkpoints; turn what ends the run into Failed."""
    try:
        checkpoints = Checkpoints(
            experiment.workdir / wd.CHECKPOINTS,
            keep=experiment.config.checkpoint.keep,
            check_lock=check_lock,
        )
    except (ValueError, OSError) as error:
        raise Failed(str(error)) from error
    with contextlib.ExitStack() as stack:
        stack.callback(checkpoints.close)
        try:
            yield checkpoints
            checkpoints.wait()
        except CheckpointError as error:
            raise Failed(f"{error}; {checkpoints.last_good}") from error
        except NonFiniteError as error:
            _wait_quietly(checkpoints)
            where = _diagnose(experiment, checkpoints, error.step)
            raise Diverged(f"{error}{where}; {checkpoints.last_good}") from error
        except OSError as error:
            _wait_quietly(checkpoints)
            reason = str(error)
            if error.strerror:
                reason = f"{error.filename or experiment.workdir}: {error.strerror}"
            raise Failed(f"{reason}; {checkpoints.last_good}") from error
        except jax.errors.JaxRuntimeError:
            if jax.process_count() > 1:
                # Another one may be lost, and a save would wait for it.
                stack.pop_all()
            else:
                _wait_quietly(checkpoints)
            raise


def _wait_quietly(checkpoints: Checkpoints) -> None:
    """Wait for a save; that it failed is told by which checkpoint is the last good."""
    with contextlib.suppress(CheckpointError):
        checkpoints.wait()


def _start(
    experiment: Experiment, checkpoints: Checkpoints
) -> tuple[TrainState, dict[str, Any]]:
    """The state to start from, and what was saved about it: of the newest checkpoint.

    Raises:
        CheckpointError: if it is the checkpoint of something else.
    """
    step = checkpoints.newest
    if step is None:
        about = {"epoch_seconds": 0.0, "metrics": []}
        return experiment.first_state(), about
    about = checkpoint.read_metadata(checkpoints.directory, step)
    # How long to train is the folder's matter: see `workdir.check`.
    changes = wd.differences(
        about["config"], wd.to_json(experiment.config), but=wd.LENGTH
    )
    if changes:
        raise CheckpointError(
            f"checkpoint {step} is of another config: {'; '.join(changes)}"
        )
    if step > experiment.total_steps:
        raise CheckpointError(
            f"checkpoint {step} is of a longer training than the config's "
            f"{experiment.total_steps} steps"
        )
    return _restore(experiment, checkpoints.directory, step), about


def _restore(experiment: Experiment, directory: pathlib.Path, step: int) -> TrainState:
    """Read a checkpoint of this experiment."""
    template = experiment.abstract_state()
    layout = experiment.state_sharding(template)
    return checkpoint.restore(directory, step, template, layout)


def _train(
    experiment: Experiment,
    checkpoints: Checkpoints,
    evaluator: Evaluator,
    should_stop: Callable[[], bool],
    check_lock: Callable[[], object],
) -> tuple[TrainState, list[Record]]:
    """Train epoch by epoch; after each, evaluate, report and save."""
    state, about = _start(experiment, checkpoints)
    step, total_steps = state.steps_done, experiment.total_steps
    if step:
        print(f"resuming after step {step} of {total_steps}")
    records = about["metrics"]
    check_lock()
    wd.truncate_metrics(experiment.workdir / wd.METRICS, records)
    runner = EpochRunner(experiment, state, seconds=about["epoch_seconds"])
    kernels = kernel_checksums(state.params) if step == 0 else None
    with Report(
        experiment.workdir,
        first_step=step,
        total_steps=total_steps,
        epochs=experiment.num_epochs,
        run_names=experiment.runs.names,
        check_lock=check_lock,
    ) as report:
        is_asked, saved_at = False, time.monotonic()
        while step < total_steps and not is_asked:

            def should_pause(saved_at: float = saved_at) -> bool:
                return should_stop() or _is_late(experiment, saved_at)

            state, record = runner.run(state, report.progress, should_pause)
            step = state.steps_done
            score = checkpoint.NOT_SCORED
            if record is not None:
                record |= _validate(experiment, evaluator, state)
                score = summary.mean(record["val_accuracy"])
                records.append(wd.plain(record))
                report.epoch(records[-1])
                if kernels is not None:
                    _warn_if_still(kernels, kernel_checksums(state.params))
                    kernels = None
            is_asked, is_late = processes.max_over_processes(
                should_stop(), _is_late(experiment, saved_at)
            )
            if is_asked or is_late or step == total_steps or _is_due(experiment, step):
                about = summary.about(
                    experiment, epoch_seconds=runner.seconds, metrics=records
                )
                checkpoints.save(step, state, about, score=score)
                saved_at = time.monotonic()
    if step < total_steps:
        checkpoints.wait()
        raise Stopped(
            f"stopped after step {step} of {total_steps}; "
            "the same command resumes from there"
        )
    return state, records


def _validate(
    experiment: Experiment, evaluator: Evaluator, state: TrainState
) -> dict[str, np.ndarray]:
    """The validation's part of an epoch's record."""
    val = evaluator(state.eval_variables, experiment.val)
    if not np.isfinite(val.loss_R).any():
        raise NonFiniteError(state.steps_done)
    return {"val_loss": val.loss_R, "val_accuracy": val.accuracy_R}


def _warn_if_still(before: dict[str, int], after: dict[str, int]) -> None:
    """Tell of kernels that an epoch of training has not changed."""
    still = [name for name, total in before.items() if after[name] == total]
    if still and processes.is_main():
        more = f" and {len(still) - 3} more" if len(still) > 3 else ""
        print(
            f"warning: the first epoch has not changed {', '.join(still[:3])}{more}; "
            "is config.optimizer.learning_rate too small?",
            file=sys.stderr,
        )


def _is_late(experiment: Experiment, saved_at: float) -> bool:
    """Whether to save because the last time is too long ago."""
    minutes = experiment.config.checkpoint.every_minutes
    return minutes is not None and time.monotonic() - saved_at >= 60 * minutes


def _is_due(experiment: Experiment, step: int) -> bool:
    """Whether to save after a step."""
    every = experiment.config.checkpoint
    is_due = step % (every.every_epochs * experiment.steps_per_epoch) == 0
    return is_due or (every.every_steps is not None and step % every.every_steps == 0)


def _diagnose(experiment: Experiment, checkpoints: Checkpoints, step: int) -> str:
    """Repeat the steps up to one that failed and say what is not finite first."""
    if not experiment.config.debug_nans:
        return ""
    state, _ = _start(experiment, checkpoints)
    runner = EpochRunner(experiment, state)
    # The step before may have had a finite loss and a gradient that was not.
    for suspect in range(max(state.steps_done, step - 2), step):
        while state.steps_done < suspect:
            epoch, index = divmod(state.steps_done, experiment.steps_per_epoch)
            left = min(suspect - state.steps_done, experiment.steps_per_epoch - index)
            state = runner.take_steps(left, state, runner.order(epoch))
        name = find_first_nonfinite(experiment, state)
        if name is not None:
            return f"; in step {suspect + 1} the first that is not finite is {name}"
    return "; when it is repeated, all of it is finite"


def _plot(
    experiment: Experiment, variables: Any, records: list[Record], test: Evaluation
) -> None:
    """Draw the run's pictures; of several runs those of the one that validates best."""
    variables = sharding.fetch(variables, experiment.mesh)
    if not processes.is_main():
        return
    folder = experiment.workdir / wd.PLOTS
    folder.mkdir(exist_ok=True)
    plots.plot_curves(records, experiment.runs.names, folder / "curves.png")
    accuracy_R = np.array(records[-1]["val_accuracy"], float, ndmin=1)
    best = int(np.nanargmax(accuracy_R))
    experiment.task.plot(
        experiment.model,
        experiment.runs.take(variables, best),
        experiment.test,
        test.output_RM[best],
        folder,
    )
