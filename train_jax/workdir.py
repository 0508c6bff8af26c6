"""The folder of a run: what lies in it, and whether a new start may use it."""

import json
import os
import pathlib
import shutil
from collections.abc import Iterable
from typing import Any

import numpy as np

from train_jax import processes
from train_jax.config import FIELDS, Config, flatten
from train_jax.models import model_fields

CONFIG, METRICS, SUMMARY = "config.json", "metrics.jsonl", "summary.json"
CHECKPOINTS, TENSORBOARD, PLOTS = "checkpoints", "tensorboard", "plots"

# Where the data lie on this machine is no part of what the run computes.
_MAY_DIFFER = {"dataset.data_dir", "dataset.manual_dir", "debug_nans"}


def check(workdir: pathlib.Path, config: Config, *, overwrite: bool) -> None:
    """Make sure that a run with this config may use the folder; change nothing.

    Raises:
        ValueError: if the folder holds something else than a run, or a run with
            another config that is not to be overwritten.
    """
    if not workdir.exists():
        return
    if not workdir.is_dir():
        raise ValueError(f"--workdir must be a folder, got the file {str(workdir)!r}")
    if not any(workdir.iterdir()):
        return
    if not (workdir / CONFIG).exists():
        raise ValueError(
            f"--workdir {str(workdir)!r} holds files but no run ({CONFIG} is missing); "
            "give a folder that is new or empty"
        )
    if overwrite:
        return
    if (workdir / SUMMARY).exists():
        read_json(workdir / SUMMARY)
    changes = differences(read_json(workdir / CONFIG), to_json(config))
    if changes:
        raise ValueError(
            f"--workdir {str(workdir)!r} holds a run of another config: "
            f"{'; '.join(changes)}. Give another --workdir, or --overwrite to lose it"
        )


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Say in which fields two configs, as `to_json` makes them, ask for other runs.

    A field that one of them lacks, because the version that wrote it did not have it
    yet, had its default.
    """
    defaults = {field: default for field, (default, _) in FIELDS.items()}
    for name, parameter in model_fields(now["model.name"]).items():
        if parameter.default is not parameter.empty:
            defaults[f"model.{name}"] = parameter.default
    before, now = defaults | before, defaults | now
    return [
        f"config.{field} was {before.get(field)!r} and is {now.get(field)!r}"
        for field in sorted((before.keys() | now.keys()) - _MAY_DIFFER)
        if before.get(field) != now.get(field)
    ]


def prepare(workdir: pathlib.Path, config: Config, *, overwrite: bool) -> None:
    """Make the folder ready for the run and record its config there.

    Raises:
        ValueError: if the folder cannot be written.
    """
    processes.wait_for_all("the run's folder checked")
    if not processes.is_main():
        return
    try:
        if overwrite and (workdir / CONFIG).exists():
            _remove_run(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(workdir / CONFIG, to_json(config))
    except OSError as error:
        raise ValueError(
            f"--workdir {str(workdir)!r} cannot be written: {error.strerror}"
        ) from error


def _remove_run(workdir: pathlib.Path) -> None:
    """Delete what a run leaves; the config last, so that a rest is known as a run."""
    for name in (CHECKPOINTS, TENSORBOARD, PLOTS):
        if (workdir / name).exists():
            shutil.rmtree(workdir / name)
    for name in (METRICS, SUMMARY, CONFIG):
        (workdir / name).unlink(missing_ok=True)


def to_json(config: Config) -> dict[str, Any]:
    """Map dotted field names to values as they come back from a JSON file."""
    return json.loads(json.dumps(flatten(config)))


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Read a JSON file.

    Raises:
        ValueError: naming the file, if it is no valid JSON.
    """
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {value!r:.40}")
    return value


def write_json(path: pathlib.Path, value: Any) -> None:
    """Write a JSON file so that it is there completely or not at all."""
    _replace(path, json.dumps(value, indent=2) + "\n")


def plain(record: dict[str, Any]) -> dict[str, Any]:
    """Turn metrics of R runs into what JSON knows: a number, or a list if R > 1.

    What is not finite becomes None.
    """

    def turn(value: Any) -> Any:
        numbers = [v if np.isfinite(v) else None for v in np.ravel(value).tolist()]
        return numbers if len(numbers) > 1 else numbers[0]

    return {name: turn(value) for name, value in record.items()}


def keep_metrics(path: pathlib.Path, last_step: int) -> list[dict[str, Any]]:
    """Drop the lines of steps that will be done again, and return the others.

    A line that the end of a killed run cut short is dropped too.
    """
    records = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
            is_kept = record["step"] <= last_step
        except (ValueError, KeyError, TypeError):
            break
        if is_kept:
            records.append(record)
    _replace(path, "".join(_lines(records)))
    return records


def append_metrics(path: pathlib.Path, record: dict[str, Any]) -> None:
    """Append one line to the metrics, and see that it is on the disk."""
    if processes.is_main():
        with path.open("a") as file:
            file.writelines(_lines([record]))
            file.flush()
            os.fsync(file.fileno())


def _lines(records: Iterable[dict[str, Any]]) -> list[str]:
    return [json.dumps(record) + "\n" for record in records]


def _replace(path: pathlib.Path, text: str) -> None:
    """Write to a file beside it and put that in its place."""
    if not processes.is_main():
        return
    draft = path.with_name(path.name + ".draft")
    try:
        draft.write_text(text)
        os.replace(draft, path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
