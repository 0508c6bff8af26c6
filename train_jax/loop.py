"""The story of a run: data → model → steps → evaluation → checkpoints → report."""

import math
import platform
from typing import Any

import flax
import jax
import optax

from train_jax import plots, sharding
from train_jax import workdir as wd
from train_jax.checkpoint import Checkpoints
from train_jax.epoch import EpochRunner
from train_jax.evaluate import Evaluation, evaluate
from train_jax.experiment import Experiment
from train_jax.models import count_parameters, init_variables, list_layers
from train_jax.report import Report, print_layers
from train_jax.state import TrainState
from train_jax.tasks import EvalStep


def train_and_evaluate(experiment: Experiment) -> dict[str, Any]:
    """Train to the end, from the newest checkpoint if there is one, then test.

    Returns:
        The summary, as it lies in summary.json; a finished run's is read from there.

    Raises:
        FloatingPointError: if the loss is not finite any more.
    """
    workdir = experiment.workdir
    if (workdir / wd.SUMMARY).exists():
        print("this run is finished already")
        return wd.read_json(workdir / wd.SUMMARY)

    sizes = [
        len(split) for split in (experiment.train, experiment.val, experiment.test)
    ]
    print(
        f"{experiment.config.model.name} on {experiment.config.dataset.name}: "
        "{:,} examples to train on, {:,} to validate, {:,} to test; ".format(*sizes)
        + _devices()
    )
    eval_step = jax.jit(experiment.task.make_eval_step(experiment.model))
    checkpoints = Checkpoints(
        workdir / wd.CHECKPOINTS, keep=experiment.config.checkpoint.keep
    )
    try:
        state = _first_state(experiment, checkpoints)
        state, records = _train(experiment, state, eval_step, checkpoints)
    finally:
        checkpoints.close()

    test = _evaluate(experiment, eval_step, state, experiment.test)
    _plot(experiment, state, records, test)
    summary = _summarize(experiment, state, records, test)
    wd.write_json(workdir / wd.SUMMARY, summary)
    return summary


def _devices() -> str:
    """Say how many devices there are, and of what kind."""
    return f"{jax.device_count()} × {jax.devices()[0].device_kind}"


def _first_state(experiment: Experiment, checkpoints: Checkpoints) -> TrainState:
    """The state to start from: the newest checkpoint's, or a new one."""
    model, inputs = experiment.model, experiment.task.inputs()
    variables = init_variables(model, experiment.key("init"), inputs)
    rows = list_layers(model, variables, inputs)
    print_layers(rows, count_parameters(variables["params"]))

    ema = experiment.config.ema_decay is not None
    state = TrainState.create(variables, experiment.tx, ema=ema)
    everywhere = sharding.replicated(experiment.mesh)
    latest = checkpoints.latest_step()
    if latest is None:
        return jax.device_put(state, everywhere)
    print(f"resuming after step {latest} of {experiment.total_steps}")
    return checkpoints.restore(latest, state, everywhere)


def _train(
    experiment: Experiment,
    state: TrainState,
    eval_step: EvalStep,
    checkpoints: Checkpoints,
) -> tuple[TrainState, list[dict[str, Any]]]:
    """Train epoch by epoch; after each, evaluate, report and save."""
    config = experiment.config
    step = int(state.step)
    records = wd.keep_metrics(experiment.workdir / wd.METRICS, step)
    epoch_runner = EpochRunner(experiment, state)
    with Report(
        experiment.workdir,
        first_step=step,
        total_steps=experiment.total_steps,
        epochs=experiment.num_epochs,
    ) as report:
        while step < experiment.total_steps:
            state, record = epoch_runner.run(state, report.progress)
            step = record["step"]
            val = _evaluate(experiment, eval_step, state, experiment.val)
            record |= {"val_loss": val.loss, "val_accuracy": val.accuracy}
            records.append(record)
            report.epoch(record)
            last = step == experiment.total_steps
            if last or record["epoch"] % config.checkpoint.every_epochs == 0:
                checkpoints.save(step, state)
    return state, records


def _evaluate(
    experiment: Experiment, eval_step: EvalStep, state: TrainState, split: Any
) -> Evaluation:
    """Evaluate the state on a split, in batches that the devices can share."""
    devices = experiment.mesh.size
    return evaluate(
        eval_step,
        state.eval_variables,
        split,
        batch_size=math.ceil(experiment.config.eval_batch_size / devices) * devices,
        sharding=sharding.batch_sharding(experiment.mesh),
    )


def _plot(
    experiment: Experiment,
    state: TrainState,
    records: list[dict[str, Any]],
    test: Evaluation,
) -> None:
    """Draw the run's pictures into its folder."""
    folder = experiment.workdir / wd.PLOTS
    folder.mkdir(exist_ok=True)
    plots.plot_curves(records, folder / "curves.png")
    experiment.task.plot(
        experiment.model, state.eval_variables, experiment.test, test.output_M, folder
    )


def _summarize(
    experiment: Experiment,
    state: TrainState,
    records: list[dict[str, Any]],
    test: Evaluation,
) -> dict[str, Any]:
    """Gather what summary.json says of the run."""
    config = experiment.config
    train_seconds = sum(record["seconds"] for record in records)
    return {
        "test_accuracy": test.accuracy,
        "test_loss": test.loss,
        "val_accuracy": records[-1]["val_accuracy"],
        "val_loss": records[-1]["val_loss"],
        "num_params": count_parameters(state.params),
        "steps": experiment.total_steps,
        "train_seconds": train_seconds,
        "images_per_second": experiment.total_steps * config.batch_size / train_seconds,
        "model": config.model.name,
        "dataset": config.dataset.name,
        "seed": config.seed,
        "device": _devices(),
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "flax": flax.__version__,
            "optax": optax.__version__,
        },
    }
