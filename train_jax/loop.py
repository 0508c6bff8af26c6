"""The story of a run: data → model → steps → evaluation → checkpoints → report."""

import functools
import math
import platform
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from train_jax import plots, sharding
from train_jax import workdir as wd
from train_jax.augment import normalize
from train_jax.checkpoint import Checkpoints
from train_jax.data import Split
from train_jax.epoch import EpochRunner
from train_jax.evaluate import EvalStep, Evaluation, evaluate, make_eval_step
from train_jax.experiment import Experiment
from train_jax.models import count_parameters, init_variables, list_layers
from train_jax.report import Report, print_layers
from train_jax.state import TrainState
from vit_jax.interpret import attention_weights


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
        len(s.label_B) for s in (experiment.train, experiment.val, experiment.test)
    ]
    print(
        f"{experiment.config.model.name} on {experiment.config.dataset.name}: "
        "{:,} images to train on, {:,} to validate, {:,} to test; ".format(*sizes)
        + _devices()
    )
    eval_step = jax.jit(
        make_eval_step(experiment.model, mean=experiment.mean, std=experiment.std)
    )
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
    variables = init_variables(
        experiment.model, experiment.key("init"), experiment.image_shape
    )
    rows = list_layers(experiment.model, variables, experiment.image_shape)
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
    experiment: Experiment, eval_step: EvalStep, state: TrainState, split: Split
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
    split = experiment.test
    names, predicted_M = split.class_names, test.probability_MY.argmax(axis=-1)
    plots.plot_curves(records, folder / "curves.png")
    plots.plot_confusion(
        split.label_B, predicted_M, names, folder / "confusion_matrix.png"
    )
    plots.plot_misclassified(
        split.image_BHWC,
        split.label_B,
        test.probability_MY,
        names,
        folder / "misclassified.png",
    )
    image_BHWC = split.image_BHWC[:8]
    weights = jax.jit(functools.partial(attention_weights, experiment.model))(
        state.eval_variables,
        normalize(jnp.asarray(image_BHWC), mean=experiment.mean, std=experiment.std),
    )
    if weights:
        plots.plot_attention(
            image_BHWC,
            np.asarray(weights[-1]),
            [names[label] for label in predicted_M[:8]],
            folder / "attention.png",
            has_class_token=experiment.config.model.pool == "cls",
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
