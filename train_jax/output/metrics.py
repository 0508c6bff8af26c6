"""Metrics: means over runs, and the lines of metrics.jsonl."""

import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from train_jax.devices import processes
from train_jax.output.files import append_line, replace_file
from train_jax.storage.store import Path


def mean(value_R: np.ndarray) -> float:
    """The mean over the runs that are finite; NaN if none is."""
    finite = value_R[np.isfinite(value_R)]
    return float(np.mean(finite)) if len(finite) else float("nan")


def deviation(value_R: np.ndarray) -> float:
    """The standard deviation (n - 1) over the runs that are finite; 0 for one."""
    finite = value_R[np.isfinite(value_R)]
    return float(np.std(finite, ddof=1)) if len(finite) > 1 else 0.0


def metrics_to_json(record: dict[str, Any]) -> dict[str, Any]:
    """Turn metrics of R runs into JSON values: a number, or a list if R > 1.

    What is not finite becomes None.
    """

    def convert(value: Any) -> Any:
        numbers = [v if np.isfinite(v) else None for v in np.ravel(value).tolist()]
        return numbers if len(numbers) > 1 else numbers[0]

    return {name: convert(value) for name, value in record.items()}


def metrics_from_json(value: float | list[float | None] | None) -> np.ndarray:
    """Turn a metric's JSON value into an array of runs, (R,); None becomes NaN."""
    return np.array(value, float, ndmin=1)


def truncate_metrics(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Replace metrics.jsonl by the lines that a checkpoint knows.

    Later ones are computed anew.
    """
    if processes.is_main():
        replace_file(path, "".join(_lines(records)))


def append_metrics(path: Path, record: dict[str, Any]) -> None:
    """Append a line to metrics.jsonl, and flush it to the disk."""
    if processes.is_main():
        append_line(path, *_lines([record]))


def _lines(records: Iterable[dict[str, Any]]) -> list[str]:
    return [json.dumps(record) + "\n" for record in records]
