"""Train and evaluate a model: from the config to the summary.

A run checks its folder, sets up, trains epoch by epoch, tests, and is summarised.
"""

import concurrent.futures
import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from train_jax.config.config import from_config_dict, to_json
from train_jax.config.fields import Config
from train_jax.devices import processes, sharding
from train_jax.learning.state import TrainState, count_parameters
from train_jax.output import checkpoint_search, plots, report, summary
from train_jax.output import workdir as wd
from train_jax.output.checkpoint import Checkpoints
from train_jax.output.files import open_folder, write_json
from train_jax.output.layers import print_layers
from train_jax.output.metrics import metrics_from_json, truncate_metrics
from train_jax.output.tensorboard import import_tensorboardx
from train_jax.run import loop
from train_jax.run.checkpointing import (
    SaveSchedule,
    load_state,
    read_newest_metadata,
    run_metadata,
    save_checkpoint,
    variables_to_test,
)
from train_jax.run.debug_nans import diagnose
from train_jax.run.dtype import choose_dtype
from train_jax.run.evaluator import Evaluation
from train_jax.run.failures import Failed, NonFiniteError, Stopped, open_checkpoints
from train_jax.run.loop import Record
from train_jax.run.optimizer import frozen_params
from train_jax.run.profiler import Profiler
from train_jax.run.setup import Parts, set_up
from train_jax.storage.store import Path, any_path

ShouldStop = Callable[[], bool]


def train_and_evaluate(
    config: Any,
    workdir: Path | str,
    *,
    overwrite: bool = False,
    extend: bool = False,
    should_stop: ShouldStop = lambda: False,
) -> dict[str, Any]:
    """Train to the end, from the newest checkpoint if there is one, then test.

    Args:
        config: what `get_config()` of a config file returns, or a `Config`.
        workdir: the run's folder, on this machine or gs://BUCKET/FOLDER.
        overwrite: whether to delete a run in the folder first.
        extend: whether such a run may be trained longer than its schedule said.
        should_stop: asked every few seconds whether to save and stop.

    Returns:
        The summary, as in summary.json; a finished run's is read from there.

    Raises:
        ValueError: for wrong input: it names the field, its value and what is allowed.
        WorkdirError: if the folder may not be used, or cannot be written; nothing is
            changed then.
        Stopped: if it was asked to stop.
        Failed: if a file cannot be written any more, or the checkpoints cannot be
            read; it names the last good checkpoint.
        Diverged: if the loss is not finite any more; it names the step.
    """
    config, workdir = from_config_dict(config), any_path(str(workdir), "workdir")
    run = prepare_run(config, workdir, overwrite=overwrite, extend=extend)
    return run(should_stop)


def prepare_run(
    config: Config,
    workdir: Path,
    *,
    overwrite: bool = False,
    extend: bool = False,
) -> Callable[[ShouldStop], dict[str, Any]]:
    """Check everything, write nothing; return what `train_and_evaluate` then runs."""
    config = choose_dtype(config, workdir, overwrite=overwrite)
    fields = to_json(config)
    finished = None if overwrite else _read_finished(workdir, fields)
    if finished is not None:
        return lambda should_stop: finished

    def check_folder() -> None:
        wd.check_unlocked(workdir)
        wd.check_workdir(workdir, fields, overwrite=overwrite, extend=extend)

    processes.call_on_main(check_folder)
    with wd.naming_workdir(workdir):
        has_checkpoint = checkpoint_search.has_any(workdir / wd.CHECKPOINTS)
    parts = set_up(config, resumes=has_checkpoint and not overwrite)
    return functools.partial(
        _run, workdir, config, parts, overwrite=overwrite, extend=extend
    )


def _read_finished(workdir: Path, fields: wd.Fields) -> dict[str, Any] | None:
    """Read the summary of a run that is finished already, and say so; else None.

    Process 0 decides; in the others the summary is empty.
    """
    result = processes.call_on_main(lambda: wd.read_summary(workdir, fields))
    (is_finished,) = processes.max_over_processes(result is not None)
    if not is_finished:
        return None
    print("this run is finished already")
    return result or {}


def _run(
    workdir: Path,
    config: Config,
    parts: Parts,
    should_stop: ShouldStop,
    *,
    overwrite: bool,
    extend: bool,
) -> dict[str, Any]:
    """Train and evaluate in a folder that was checked; see `open_workdir`."""
    fields = to_json(config)
    opened = wd.open_workdir(workdir, fields, overwrite=overwrite, extend=extend)
    with opened as check_lock:
        report.print_overview(fields, parts.splits, num_runs=len(parts.runs))
        print_layers(parts.model, parts.task.inputs())
        with open_checkpoints(
            workdir / wd.CHECKPOINTS,
            keep=config.checkpoint.keep,
            check_lock=check_lock,
            diagnose=functools.partial(diagnose, config, parts),
        ) as checkpoints:
            last, records = _train(
                workdir, config, parts, checkpoints, check_lock, should_stop
            )
            finite_steps_R = np.atleast_1d(jax.device_get(last.finite_steps))
            step, variables = variables_to_test(
                config.test_checkpoint, checkpoints, last, parts.abstract_state
            )
            test, results = _test(parts, variables, step)
            check_lock()
            _plot(workdir / wd.PLOTS, parts, variables, records, step, test)
            result = summary.summarize(
                fields,
                records,
                results=results,
                test_step=step,
                finite_steps_R=finite_steps_R,
                total_steps=parts.trainer.total_steps,
                num_images=parts.trainer.num_images,
                num_params=count_parameters(variables["params"]) // len(parts.runs),
                seeds=parts.runs.seeds,
                swept=parts.runs.swept,
            )
            checkpoints.wait()  # The summary says that the run is finished.
            check_lock()
            if processes.is_main():
                write_json(workdir / wd.SUMMARY, result)
            return result


def _train(
    workdir: Path,
    config: Config,
    parts: Parts,
    checkpoints: Checkpoints,
    check_lock: Callable[[], object],
    should_stop: ShouldStop,
) -> tuple[TrainState, list[Record]]:
    """Train from the newest checkpoint to the end."""
    trainer = parts.trainer
    metadata = run_metadata(to_json(config), parts.task, parts.splits)
    state, records = _start(metadata, parts, checkpoints)
    check_lock()
    try:
        processes.call_on_main(lambda: wd.record_config(workdir, metadata["config"]))
    except (OSError, ValueError) as error:
        raise Failed(f"{error}; {checkpoints.last_good}") from error
    truncate_metrics(workdir / wd.METRICS, records)
    with (
        contextlib.closing(trainer.feed),
        report.Report(
            workdir,
            first_step=state.steps_done,
            total_steps=trainer.total_steps,
            epochs=trainer.num_epochs,
            run_names=parts.runs.names,
            check_lock=check_lock,
        ) as reporter,
        Profiler(workdir / wd.PROFILE, config.profile_steps) as profiler,
    ):
        state = loop.train(
            state,
            records,
            trainer=trainer,
            validate=parts.validate,
            report=reporter,
            save=functools.partial(save_checkpoint, checkpoints, metadata),
            save_schedule=SaveSchedule(
                config.checkpoint.every_epochs * trainer.steps_per_epoch,
                total_steps=trainer.total_steps,
                every_steps=config.checkpoint.every_steps,
                every_minutes=config.checkpoint.every_minutes,
            ),
            should_stop=should_stop,
            profiler=profiler,
            frozen=frozen_params(config),
        )
    if state.steps_done < trainer.total_steps:
        checkpoints.wait()
        raise Stopped(
            f"stopped after step {state.steps_done} of {trainer.total_steps}; "
            "the same command resumes from there"
        )
    return state, records


def _start(
    metadata: dict[str, Any], parts: Parts, checkpoints: Checkpoints
) -> tuple[TrainState, list[Record]]:
    """Draw or restore the state to go on from, while the steps are compiled."""
    trainer = parts.trainer
    total_steps = trainer.total_steps
    before = read_newest_metadata(checkpoints, metadata, total_steps=total_steps)
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        compiled = thread.submit(trainer.compile, parts.abstract_state)
        state = load_state(checkpoints, parts.abstract_state, parts.init_state)
        if state.steps_done:
            print(f"resuming after step {state.steps_done} of {total_steps}")
        import_tensorboardx()  # it takes a while, and is needed next
        seconds = compiled.result()
    # All wait for the slowest: Gloo gives a program's first exchange 30 s.
    (seconds,) = processes.max_over_processes(seconds)
    print(f"compiled in {seconds:.1f} s")
    trainer.epoch_seconds = before["epoch_seconds"]
    return state, before["metrics"]


def _test(
    parts: Parts, variables: Any, step: int
) -> tuple[Evaluation, dict[str, np.ndarray]]:
    """Evaluate on the test split; the results have names as in the summary.

    Raises:
        NonFiniteError: if the loss is finite in no run, after this step.
    """
    test = parts.evaluator(variables, parts.test)
    if not np.isfinite(test.loss_R).any():
        raise NonFiniteError(step, found="the test loss is not finite after")
    results = {"test_accuracy": test.accuracy_R, "test_loss": test.loss_R}
    if parts.view_evaluator is not None:
        augmented = parts.view_evaluator(variables, parts.test)
        results["test_accuracy_augmented"] = augmented.accuracy_R
    return test, results


def _plot(
    folder: Path,
    parts: Parts,
    variables: Any,
    records: list[Record],
    step: int,
    test: Evaluation,
) -> None:
    """Draw pictures of what was tested after `step` steps; of several runs the best."""
    variables = sharding.fetch(variables, parts.runs.mesh)
    if not processes.is_main():
        return
    tested = next(it for it in records if it["step"] == step)
    if "val_accuracy" in tested:
        best = int(np.nanargmax(metrics_from_json(tested["val_accuracy"])))
    else:  # the first that did not diverge
        best = int(np.argmax(np.isfinite(test.loss_R)))
    with open_folder(folder) as local:
        plots.plot_curves(records, parts.runs.names, local / "curves.png")
        parts.task.plot(
            parts.model,
            parts.runs.select(variables, best),
            parts.test,
            test.output_RM[best],
            local,
        )
