"""Summarise a run: results, versions, devices."""

import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import numpy as np

from train_jax.output.metrics import deviation, mean, metrics_from_json


def summarize(
    fields: dict[str, Any],
    records: Sequence[dict[str, Any]],
    *,
    results: Mapping[str, np.ndarray],
    test_step: int,
    finite_steps_R: np.ndarray,
    total_steps: int,
    num_images: int,
    num_params: int,
    seeds: Sequence[int],
    swept: Mapping[str, Sequence[float]],
) -> dict[str, Any]:
    """Make the content of summary.json.

    Args:
        fields: the config.
        records: the lines of metrics.jsonl.
        results: name → the results of the R runs on the test split: `test_accuracy`
            in [0, 1], `test_loss` in nats, `test_accuracy_augmented`, if there is one.
        test_step: step of the state that was tested.
        finite_steps_R: number of steps before the loss was first not finite.
        total_steps: length of the training.
        num_images: number of images that all runs were trained on.
        num_params: of one run.
        swept: field → its value in each run.
    """
    tested = next(record for record in records if record["step"] == test_step)
    results = dict(results)
    for name in ("val_accuracy", "val_loss"):
        if name in tested:
            results[name] = metrics_from_json(tested[name])
    diverged = [None if n == total_steps else int(n) + 1 for n in finite_steps_R]
    # An extended run may have two records of the epoch in which it was to end before;
    # the later one includes the seconds of the earlier one.
    train_seconds = sum({line["epoch"]: line["seconds"] for line in records}.values())
    return {
        **_over_runs(results, diverged, seeds, swept),
        "num_params": num_params,
        "steps": total_steps,
        "test_step": test_step,
        "train_seconds": train_seconds,
        "images_per_second": num_images / train_seconds,
        "model": fields["model.name"],
        "dataset": fields["dataset.name"],
        "seed": fields["seed"],
        "device": describe_devices(),
        "versions": versions(),
        "config": fields,
    }


def _over_runs(
    results: Mapping[str, np.ndarray],
    diverged_in: Sequence[int | None],
    seeds: Sequence[int],
    swept: Mapping[str, Sequence[float]],
) -> dict[str, Any]:
    """Mean and standard deviation of each result over the runs that did not diverge.

    Of several runs, also a list of them.
    """
    diverged_R = np.array([step is not None for step in diverged_in])
    finite = {k: np.where(diverged_R, np.nan, v) for k, v in results.items()}
    summary: dict[str, Any] = {k: mean(v) for k, v in finite.items()}
    if len(seeds) == 1:
        return summary
    summary |= {f"{k}_std": deviation(v) for k, v in finite.items()}
    summary["runs"] = [
        {
            "seed": seed,
            **{field: values[run] for field, values in swept.items()},
            **{
                k: float(v[run]) if np.isfinite(v[run]) else None
                for k, v in finite.items()
            },
            "diverged_in_step": diverged_in[run],
        }
        for run, seed in enumerate(seeds)
    ]
    return summary


def versions() -> dict[str, str]:
    """The versions of Python and of the libraries that compute and save."""
    packages = ("jax", "flax", "optax", "orbax-checkpoint")
    found = {package: metadata.version(package) for package in packages}
    return {"python": platform.python_version()} | found


def describe_devices() -> str:
    """The number and the kind of the devices: "8 × TPU v3"."""
    return f"{jax.device_count()} × {jax.devices()[0].device_kind}"
