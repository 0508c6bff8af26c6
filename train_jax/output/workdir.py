"""Read and write a run's folder; decide whether a new start may use it."""

import contextlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from train_jax.config.config import FIELDS, Config, flatten
from train_jax.config.models import model_fields
from train_jax.devices import processes
from train_jax.output import lock

CONFIG, METRICS, SUMMARY = "config.json", "metrics.jsonl", "summary.json"
CHECKPOINTS, TENSORBOARD, PLOTS = "checkpoints", "tensorboard", "plots"
# In config.json, beside the fields: the lengths that the run was first asked for.
HISTORY = "history"

# Where the data lie on this machine is no part of what the run computes.
_MAY_DIFFER = {"dataset.data_dir", "dataset.manual_dir", "debug_nans"}

# A run may be trained longer than it was first asked for.
LENGTH = {"num_epochs", "num_steps"}

# What a summary has to say to be printed.
_RESULTS = {"test_accuracy", "test_loss", "steps", "train_seconds", "device"}


def check(
    workdir: pathlib.Path, config: Config, *, overwrite: bool, extend: bool = False
) -> None:
    """Make sure that a run with this config may use the folder; change nothing.

    Args:
        workdir: the folder.
        config: complete.
        overwrite: whether a run that lies there may be deleted.
        extend: whether such a run may be trained longer than its schedule said.

    Raises:
        ValueError: if another process uses the folder, or it holds something else than
            a run, or a run with another config that is not to be overwritten.
    """
    try:
        is_new = _check_kinds(workdir)
    except OSError as error:  # a name that is too long, a folder of somebody else
        raise ValueError(f"--workdir {str(workdir)!r}: {error.strerror}") from error
    if is_new or overwrite:
        return
    if (workdir / SUMMARY).exists():
        read_json(workdir / SUMMARY)
    before = read_json(workdir / CONFIG)
    _check_extension(workdir, before, config, extend)


def _check_kinds(workdir: pathlib.Path) -> bool:
    """Whether a folder is new; raises ValueError if it holds anything but a run."""
    if not workdir.exists():
        return True
    if not workdir.is_dir():
        raise ValueError(f"--workdir must be a folder, got the file {str(workdir)!r}")
    if all(map(lock.is_lock, workdir.iterdir())):
        return True
    if not (workdir / CONFIG).exists():
        raise ValueError(
            f"--workdir {str(workdir)!r} holds files but no run ({CONFIG} is missing); "
            "give a folder that is new or empty"
        )
    for names, is_right, kind in (
        ((CONFIG, METRICS, SUMMARY), pathlib.Path.is_file, "file"),
        ((CHECKPOINTS, TENSORBOARD, PLOTS), pathlib.Path.is_dir, "folder"),
    ):
        for path in (workdir / name for name in names):
            if path.exists() and not is_right(path):
                raise ValueError(f"{str(path)!r} is in the way: it must be a {kind}")
    return False


def check_free(workdir: pathlib.Path) -> None:
    """Raise ValueError if another process uses the folder; change nothing."""
    try:
        lock.check_free(workdir)
    except lock.InUseError as error:
        raise ValueError(f"--workdir {error}") from error
    except OSError as error:
        raise ValueError(f"--workdir {str(workdir)!r}: {error.strerror}") from error


def _check_extension(
    workdir: pathlib.Path, before: dict[str, Any], config: Config, extend: bool
) -> None:
    """Raise ValueError unless a config is that of before, or permits to go on."""
    now = to_json(config)
    changes = differences(before, now)
    if not changes:
        return
    is_longer = not differences(before, now, but=LENGTH) and _is_longer(before, now)
    schedule = now["optimizer.schedule"]
    if is_longer and (extend or schedule == "constant"):
        return
    remedy = "Give another --workdir, or --overwrite to lose it"
    if is_longer:
        remedy = (
            f"--extend trains it on, with the {schedule} schedule of the new length "
            "from the step where it stands; or give another --workdir, or --overwrite "
            "to lose it"
        )
    raise ValueError(
        f"--workdir {str(workdir)!r} holds a run of another config: "
        f"{'; '.join(changes)}. {remedy}"
    )


def _is_longer(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether a run's length, in the unit that counts in both, has grown."""
    before = {name: before.get(name, FIELDS[name][0]) for name in LENGTH}
    if before["num_steps"] is None and now["num_steps"] is None:
        return now["num_epochs"] > before["num_epochs"]
    if before["num_steps"] is None or now["num_steps"] is None:
        return False
    return now["num_steps"] > before["num_steps"]


def differences(
    before: dict[str, Any], now: dict[str, Any], *, but: Iterable[str] = ()
) -> list[str]:
    """Say in which fields two configs, as `to_json` makes them, ask for other runs.

    A field that one of them lacks, because the version that wrote it did not have it
    yet, had its default.

    Args:
        before: a run's config; what config.json says besides is left out.
        now: the config that is asked for.
        but: further fields in which they may differ.
    """
    defaults = {field: default for field, (default, _) in FIELDS.items()}
    for name, parameter in model_fields(now["model.name"]).items():
        if parameter.default is not parameter.empty:
            defaults[f"model.{name}"] = parameter.default
    before, now = defaults | before, defaults | now
    before.pop(HISTORY, None)
    if before["num_steps"] is not None and now["num_steps"] is not None:
        but = {*but, "num_epochs"}  # num_steps is what counts
    return [
        f"config.{field} was {before.get(field)!r} and is {now.get(field)!r}"
        for field in sorted((before.keys() | now.keys()) - _MAY_DIFFER.union(but))
        if before.get(field) != now.get(field)
    ]


@contextlib.contextmanager
def opened(
    workdir: pathlib.Path,
    config: Config,
    *,
    overwrite: bool = False,
    extend: bool = False,
) -> Iterator[Callable[[], object]]:
    """Lock a run's folder and record the config there; see `check`.

    Yields:
        A function to call before each write: it raises an OSError if another process
        has taken the folder over.

    Raises:
        WorkdirError: if the folder may not be used, or cannot be written.
    """
    held = contextlib.ExitStack()
    locks: list[lock.Lock] = []  # one in the process that writes, none in the others

    def lock_and_prepare() -> None:
        try:
            own = lock.acquire(workdir)
            held.enter_context(contextlib.closing(own))
            locks.append(own)
            # What was checked before may have changed until now.
            check(workdir, config, overwrite=overwrite, extend=extend)
            prepare(workdir, config, overwrite=overwrite)
        except lock.InUseError as error:
            raise ValueError(f"--workdir {error}") from error
        except OSError as error:
            raise ValueError(
                f"--workdir {str(workdir)!r} cannot be written: {error.strerror}"
            ) from error

    with held:
        try:
            processes.call_on_main(lock_and_prepare)
        except ValueError as error:
            raise WorkdirError(str(error)) from error
        yield lambda: [each.check() for each in locks]


class WorkdirError(ValueError):
    """The run's folder may not be used, or cannot be written."""


def prepare(workdir: pathlib.Path, config: Config, *, overwrite: bool) -> None:
    """Make the folder ready for the run and record its config there.

    A longer training of the run that lies there is noted in the history.

    Raises:
        OSError: if the folder cannot be written.
    """
    if overwrite and (workdir / CONFIG).exists():
        _remove_run(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    now = to_json(config)
    if (workdir / CONFIG).exists():
        before = read_json(workdir / CONFIG)
        history = before.pop(HISTORY, [])
        if differences(before, now):
            length = {name: before.get(name) for name in sorted(LENGTH)}
            saved = (workdir / CHECKPOINTS).glob("[0-9]*")
            steps = [int(path.name) for path in saved if path.name.isdecimal()]
            history.append({"until_step": max(steps, default=0), **length})
            (workdir / SUMMARY).unlink(missing_ok=True)
        now |= {HISTORY: history} if history else {}
    write_json(workdir / CONFIG, now)


def read_summary(workdir: pathlib.Path, config: Config) -> dict[str, Any] | None:
    """Read the summary of a finished run with this config; None if there is none."""
    try:
        if not (workdir / SUMMARY).exists():
            return None
    except OSError:  # a name that is too long, which `check` tells of
        return None
    summary = read_json(workdir / SUMMARY)
    is_of_config = not differences(summary.get("config", {}), to_json(config))
    return summary if is_of_config and summary.keys() >= _RESULTS else None


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
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
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


def truncate_metrics(path: pathlib.Path, records: Iterable[dict[str, Any]]) -> None:
    """Make the metrics those that a checkpoint knows; later ones are computed anew."""
    _replace(path, "".join(_lines(records)))


def append_metrics(path: pathlib.Path, record: dict[str, Any]) -> None:
    """Append one line to the metrics, and see that it is on the disk."""
    if processes.is_main():
        with path.open("a", encoding="utf-8") as file:
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
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
