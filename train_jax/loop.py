"""The story of a run: data → model → steps → evaluation → checkpoints → report."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from train_jax import checkpoint, plots, processes, sharding, summary
from train_jax import workdir as wd
from train_jax.checkpoint import CheckpointError, Checkpoints
from train_jax.diagnose import find_first_nonfinite
from train_jax.epoch import EpochRunner, NonFiniteError
from train_jax.evaluate import Evaluation, Evaluator
from train_jax.experiment import Experiment
from train_jax.models import count_parameters, init_variables, list_layers
from train_jax.report import Report, print_layers
from train_jax.state import TrainState

Record = dict[str, Any]


class Stopped(Exception):
    """The run was asked to stop, and has saved what the next start needs."""


class Failed(Exception):
    """The run cannot go on; what was saved before is intact."""


class Diverged(Failed):
    """The loss is not finite any more."""


def train_and_evaluate(
    experiment: Experiment, should_stop: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """Train to the end, from the newest checkpoint if there is one, then test.

    Args:
        experiment: what to train.
        should_stop: asked every few seconds whether to save and stop.

    Returns:
        The summary, as it lies in summary.json; a finished run's is read from there.

    Raises:
        Stopped: if it was asked to stop.
        Failed: if the folder cannot be written or its checkpoints cannot be read;
            it names the last good checkpoint.
        Diverged: if the loss is not finite any more; it names the step.
    """
    workdir = experiment.workdir
    if (workdir / wd.SUMMARY).exists():
        print("this run is finished already")
        return wd.read_json(workdir / wd.SUMMARY)

    _announce(experiment)
    with _open_checkpoints(experiment) as checkpoints:
        evaluator = Evaluator(experiment)
        state, records = _train(experiment, checkpoints, evaluator, should_stop)
        test = evaluator(state.eval_variables, experiment.test)
        _plot(experiment, state, records, test)
        result = summary.summarize(experiment, state, records, test)
        wd.write_json(workdir / wd.SUMMARY, result)
    return result


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
def _open_checkpoints(experiment: Experiment) -> Iterator[Checkpoints]:
    """Open the run's checkpoints; turn what ends the run into Failed."""
    try:
        checkpoints = Checkpoints(
            experiment.workdir / wd.CHECKPOINTS, keep=experiment.config.checkpoint.keep
        )
    except (CheckpointError, OSError) as error:
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
            raise Failed(
                f"{error.filename or experiment.workdir}: {error.strerror or error}; "
                f"{checkpoints.last_good}"
            ) from error
        except jax.errors.JaxRuntimeError:
            # Another process may be lost, and a save would wait for it.
            stack.pop_all()
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
        return experiment.first_state(), {"epoch_seconds": 0.0}
    about = checkpoint.read_about(checkpoints.directory, step)
    changes = wd.differences(about["config"], wd.to_json(experiment.config))
    if changes:
        raise CheckpointError(
            f"checkpoint {step} is of another config: {'; '.join(changes)}"
        )
    template = experiment.abstract_state()
    layout = experiment.state_sharding(template)
    return checkpoint.restore(checkpoints.directory, step, template, layout), about


def _train(
    experiment: Experiment,
    checkpoints: Checkpoints,
    evaluator: Evaluator,
    should_stop: Callable[[], bool],
) -> tuple[TrainState, list[Record]]:
    """Train epoch by epoch; after each, evaluate, report and save."""
    state, about = _start(experiment, checkpoints)
    step, total_steps = state.steps_done, experiment.total_steps
    if step:
        print(f"resuming after step {step} of {total_steps}")
    records = wd.keep_metrics(experiment.workdir / wd.METRICS, step)
    runner = EpochRunner(experiment, state, seconds=about["epoch_seconds"])
    with Report(
        experiment.workdir,
        first_step=step,
        total_steps=total_steps,
        epochs=experiment.num_epochs,
        run_names=experiment.runs.names,
    ) as report:
        is_asked = False
        while step < total_steps and not is_asked:
            state, record = runner.run(state, report.progress, should_stop)
            step = state.steps_done
            score = checkpoint.NOT_SCORED
            if record is not None:
                val = evaluator(state.eval_variables, experiment.val)
                if not np.isfinite(val.loss_R).any():
                    raise NonFiniteError(step)
                record |= {"val_loss": val.loss_R, "val_accuracy": val.accuracy_R}
                score = summary.mean(val.accuracy_R)
                records.append(wd.plain(record))
                report.epoch(records[-1])
            (is_asked,) = processes.agree(record is None or should_stop())
            if is_asked or step == total_steps or _is_due(experiment, step):
                about = summary.about(experiment, epoch_seconds=runner.seconds)
                checkpoints.save(step, state, about, score=score)
    if step < total_steps:
        checkpoints.wait()
        raise Stopped(
            f"stopped after step {step} of {total_steps}; "
            "the same command resumes from there"
        )
    return state, records


def _is_due(experiment: Experiment, step: int) -> bool:
    """Whether to save at the end of the epoch that a step ends."""
    every_epochs = experiment.config.checkpoint.every_epochs
    return step % (every_epochs * experiment.steps_per_epoch) == 0


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
    experiment: Experiment, state: TrainState, records: list[Record], test: Evaluation
) -> None:
    """Draw the run's pictures; of several runs those of the one that validates best."""
    variables = sharding.fetch(state.eval_variables, experiment.mesh)
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
