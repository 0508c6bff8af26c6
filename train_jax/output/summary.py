"""What a run comes to: its results, and what they were computed with."""

import platform
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import jax
import numpy as np

from train_jax import tasks
from train_jax.config.models import count_parameters
from train_jax.learning.state import TrainState
from train_jax.output import workdir as wd
from train_jax.run.evaluate import Evaluation
from train_jax.run.experiment import Experiment


def summarize(
    experiment: Experiment,
    state: TrainState,
    records: Sequence[dict[str, Any]],
    test: Evaluation,
    test_step: int,
) -> dict[str, Any]:
    """Gather what summary.json says.

    Of several runs it gives each result's mean and standard deviation over the runs
    that did not diverge, and a list of the runs.

    Args:
        experiment: what was trained.
        state: the last one.
        records: the lines of metrics.jsonl.
        test: the results on the test split.
        test_step: step of the state that they are of; the validation's are, too.
    """
    config, runs = experiment.config, experiment.runs
    finite_steps_R = runs.rows(jax.device_get(state.finite_steps))
    diverged_R = finite_steps_R < experiment.total_steps
    tested = next(record for record in records if record["step"] == test_step)
    last = {k: np.array(v, float, ndmin=1) for k, v in tested.items()}
    results = {
        "test_accuracy": test.accuracy_R,
        "test_loss": test.loss_R,
        "val_accuracy": last["val_accuracy"],
        "val_loss": last["val_loss"],
    }
    results = {k: np.where(diverged_R, np.nan, v) for k, v in results.items()}
    summary: dict[str, Any] = {k: mean(v) for k, v in results.items()}
    if len(runs) > 1:
        summary |= {f"{k}_std": deviation(v) for k, v in results.items()}
        summary["runs"] = [
            {
                "seed": seed,
                **{field: values[run] for field, values in runs.swept.items()},
                **{
                    k: None if diverged_R[run] else float(v[run])
                    for k, v in results.items()
                },
                "diverged_in_step": int(finite_steps_R[run]) + 1
                if diverged_R[run]
                else None,
            }
            for run, seed in enumerate(runs.seeds)
        ]
    # An extended run may have two records of the epoch in which it was to end before;
    # the later one includes the seconds of the earlier one.
    seconds = {record["epoch"]: record["seconds"] for record in records}
    train_seconds = sum(seconds.values())
    num_images = experiment.total_steps * experiment.examples_per_step
    return summary | {
        "num_params": count_parameters(state.params) // len(runs),
        "steps": experiment.total_steps,
        "test_step": test_step,
        "train_seconds": train_seconds,
        "images_per_second": num_images / train_seconds,
        "model": config.model.name,
        "dataset": config.dataset.name,
        "seed": config.seed,
        "device": describe_devices(),
        "versions": versions(),
        "config": wd.to_json(config),
    }


def about(
    experiment: Experiment, *, epoch_seconds: float, metrics: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Gather what a checkpoint has to say to be of use by itself.

    Args:
        experiment: what is trained.
        epoch_seconds: how long the steps of the current epoch have taken so far.
        metrics: the lines of metrics.jsonl so far.
    """
    return {
        "config": wd.to_json(experiment.config),
        "task": tasks.to_json(experiment.task),
        "versions": versions(),
        "epoch_seconds": epoch_seconds,
        "metrics": list(metrics),
    }


def mean(value_R: np.ndarray) -> float:
    """The mean over the runs that are finite."""
    return float(np.nanmean(value_R))


def deviation(value_R: np.ndarray) -> float:
    """The standard deviation (n - 1) over the runs that are finite; 0 for one."""
    finite = value_R[np.isfinite(value_R)]
    return float(np.std(finite, ddof=1)) if len(finite) > 1 else 0.0


def versions() -> dict[str, str]:
    """The versions of what computes and saves."""
    packages = ("jax", "flax", "optax", "orbax-checkpoint")
    found = {package: metadata.version(package) for package in packages}
    return {"python": platform.python_version()} | found


def describe_devices() -> str:
    """Say how many devices there are, and of what kind."""
    return f"{jax.device_count()} × {jax.devices()[0].device_kind}"
