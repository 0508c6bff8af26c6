"""The folder of a run: its files, who may use it, when a run may be continued.

Configs are those of config.json here: dotted field name → JSON value.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from train_jax.config.config import resolve, to_json
from train_jax.config.optimizer_fields import LENGTH_FREE_SCHEDULES
from train_jax.devices import processes
from train_jax.output import lock
from train_jax.output.files import DRAFT, read_json, write_json
from train_jax.storage import store
from train_jax.storage.store import Path

Fields = dict[str, Any]

CONFIG, METRICS, SUMMARY = "config.json", "metrics.jsonl", "summary.json"
CHECKPOINTS, TENSORBOARD, PLOTS = "checkpoints", "tensorboard", "plots"
EXPORT = "export"
PROFILE = "profile"

# In config.json, beside the fields: the lengths that the run was first asked for.
HISTORY = "history"

# Fields that may differ when a run is resumed: they do not change what it learns.
_MAY_DIFFER = {
    *("dataset.data_dir", "dataset.manual_dir", "dataset.allow_overlap"),
    *("dataset.streaming", "dataset.num_workers", "eval_batch_size"),
    *("checkpoint.every_epochs", "checkpoint.every_steps"),
    *("checkpoint.every_minutes", "checkpoint.keep"),
    *("debug_nans", "profile_steps"),
}

# A run may be trained longer than it was first asked for.
LENGTH = {"num_epochs", "num_steps"}

# A summary without these cannot be printed.
_RESULTS = {"test_accuracy", "test_loss", "steps", "train_seconds", "device"}


class WorkdirError(ValueError):
    """The run's folder may not be used, or cannot be written."""


@contextlib.contextmanager
def naming_workdir(
    workdir: Path, problem: str = "", *, name: str = "--workdir"
) -> Iterator[None]:
    """Raise errors of the file system, or of a store, as WorkdirErrors."""
    try:
        with store.errors(workdir):
            yield
    except lock.InUseError as error:
        raise WorkdirError(f"{name} {error}") from error
    except OSError as error:
        raise WorkdirError(
            f"{name} {str(workdir)!r}{problem}: {error.strerror or error}"
        ) from error


def check_workdir(
    workdir: Path,
    fields: Fields,
    *,
    overwrite: bool,
    extend: bool = False,
    deleted: str = "the run",
) -> None:
    """Make sure that a run may use the folder; change nothing.

    Args:
        workdir: the folder.
        fields: the run's config.
        overwrite: whether a run in the folder may be deleted.
        extend: whether such a run may be trained longer than its schedule said.
        deleted: what --overwrite deletes, for a message.

    Raises:
        WorkdirError: if the folder holds something else than a run, or a run with
            another config that is not to be overwritten.
    """
    with naming_workdir(workdir):  # a name that is too long, a folder of somebody else
        is_new = _check_kinds(workdir)
    if is_new or overwrite:
        return
    if (workdir / SUMMARY).exists():
        read_json(workdir / SUMMARY)
    before = read_json(workdir / CONFIG)
    _check_extension(workdir, before, fields, extend, deleted)


def _check_kinds(workdir: Path) -> bool:
    """Whether a folder is new; raises WorkdirError if it holds anything but a run."""
    if not workdir.exists():
        return True
    if not workdir.is_dir():
        raise WorkdirError(f"--workdir must be a folder, got the file {str(workdir)!r}")
    draft = CONFIG + DRAFT  # of a start that was killed
    if all(lock.is_lock(path) or path.name == draft for path in workdir.iterdir()):
        return True
    if not (workdir / CONFIG).exists():
        raise WorkdirError(
            f"--workdir {str(workdir)!r} holds files but no run ({CONFIG} is missing); "
            "give a folder that is new or empty"
        )
    for names, is_folder in (
        ((CONFIG, METRICS, SUMMARY), False),
        ((CHECKPOINTS, TENSORBOARD, PLOTS), True),
    ):
        kind = "folder" if is_folder else "file"
        for path in (workdir / name for name in names):
            if path.exists() and path.is_dir() != is_folder:
                raise WorkdirError(f"{str(path)!r} is in the way: it must be a {kind}")
    return False


def check_unlocked(workdir: Path) -> None:
    """Raise WorkdirError if another process uses the folder; change nothing."""
    with naming_workdir(workdir):
        lock.check_free(workdir)


def _check_extension(
    workdir: Path, before: Fields, now: Fields, extend: bool, deleted: str
) -> None:
    """Raise WorkdirError unless the config is the same, or may be this longer one."""
    changes = differences(before, now)
    if not changes:
        return
    is_longer = not differences(before, now, but=LENGTH) and _is_longer(before, now)
    if is_longer and (extend or not _knows_its_length(now)):
        return
    remedy = f"Give another --workdir, or --overwrite to delete {deleted}"
    if is_longer:
        remedy = (
            "--extend trains it on from the step where it stands, with the learning "
            "rate of the longer schedule; or give another --workdir, or --overwrite to "
            f"delete {deleted}"
        )
    raise WorkdirError(
        f"--workdir {str(workdir)!r} holds a run of another config: "
        f"{'; '.join(changes)}. {remedy}"
    )


def _knows_its_length(fields: Fields) -> bool:
    """Whether a learning rate before the end depends on the training's length."""
    return any(
        (field.endswith(".schedule") and value not in LENGTH_FREE_SCHEDULES)
        or (field.endswith(".cooldown_epochs") and value > 0)
        for field, value in fields.items()
    )


def _is_longer(before: Fields, now: Fields) -> bool:
    """Whether a run's length, in the unit that counts in both, has grown."""
    before = _complete(before)
    if before["num_steps"] is None and now["num_steps"] is None:
        return now["num_epochs"] > before["num_epochs"]
    if before["num_steps"] is None or now["num_steps"] is None:
        return False
    return now["num_steps"] > before["num_steps"]


def differences(before: Fields, now: Fields, *, but: Iterable[str] = ()) -> list[str]:
    """List the fields in which two configs ask for other runs, a text for each.

    A field that one of them lacks, because the version that wrote it did not have it
    yet, has its default.

    Args:
        before: a run's config.
        now: the config of this start, complete.
        but: further fields in which they may differ.
    """
    before = _complete(before)
    if before.get("num_steps") is not None and now["num_steps"] is not None:
        but = {*but, "num_epochs"}  # num_steps is what counts
    return [
        f"config.{field} was {before.get(field)!r} and is {now.get(field)!r}"
        for field in sorted(before.keys() | now.keys())
        if field not in _MAY_DIFFER.union(but, {HISTORY})
        and before.get(field) != now.get(field)
    ]


def _complete(fields: Fields) -> Fields:
    """Give the fields that an older version did not have their defaults."""
    known = {field: value for field, value in fields.items() if field != HISTORY}
    try:
        return to_json(resolve(known))
    except ValueError:  # of a field that there is no more
        return known


@contextlib.contextmanager
def open_workdir(
    workdir: Path,
    fields: Fields,
    *,
    overwrite: bool = False,
    extend: bool = False,
) -> Iterator[Callable[[], object]]:
    """Lock a run's folder, and record a new run's config; see `check_workdir`.

    Yields:
        A function to call before each write: it raises an OSError if another process
        has taken the folder over.

    Raises:
        WorkdirError: if the folder may not be used, or cannot be written.
    """
    held = contextlib.ExitStack()

    def lock_and_prepare() -> lock.Lock:
        with naming_workdir(workdir, " cannot be written"):
            own = held.enter_context(contextlib.closing(lock.acquire(workdir)))
            # What was checked before may have changed until now.
            check_workdir(workdir, fields, overwrite=overwrite, extend=extend)
            prepare_workdir(workdir, fields, overwrite=overwrite)
            return own

    with held:
        try:
            own = processes.call_on_main(lock_and_prepare)
        except ValueError as error:
            raise WorkdirError(str(error)) from error
        yield (lambda: None) if own is None else own.check


def prepare_workdir(workdir: Path, fields: Fields, *, overwrite: bool = False) -> None:
    """Make the folder ready for the run, and record the config of a new one.

    Raises:
        OSError: if the folder cannot be written.
    """
    if overwrite:
        _remove_run(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    if overwrite or not (workdir / CONFIG).exists():
        write_json(workdir / CONFIG, fields)


def record_config(workdir: Path, fields: Fields) -> None:
    """Record the config of a run that goes on; a longer training adds to the history.

    Raises:
        OSError: if the folder cannot be written.
        ValueError: if the config that is there cannot be read.
    """
    with store.errors(workdir):
        before = read_json(workdir / CONFIG)
        history = before.pop(HISTORY, [])
        if differences(before, fields):
            length = {name: before.get(name) for name in sorted(LENGTH)}
            saved = (workdir / CHECKPOINTS).glob("[0-9]*")
            steps = [int(path.name) for path in saved if path.name.isdecimal()]
            history.append({"until_step": max(steps, default=0), **length})
        write_json(workdir / CONFIG, fields | ({HISTORY: history} if history else {}))
        # That of a shorter training, as a run that is finished is not trained.
        (workdir / SUMMARY).unlink(missing_ok=True)


def read_summary(workdir: Path, fields: Fields) -> Fields | None:
    """Read the summary of a finished run with this config; None if there is none."""
    try:
        with store.errors(workdir):
            if not (workdir / SUMMARY).exists():
                return None
    except OSError:  # a name that is too long: an error of `check_workdir`
        return None
    summary = read_json(workdir / SUMMARY)
    is_of_config = not differences(summary.get("config", {}), fields)
    return summary if is_of_config and summary.keys() >= _RESULTS else None


def read_field(workdir: Path, field: str) -> Any:
    """Read a field of the config of the run in the folder; None if there is none."""
    try:
        with store.errors(workdir):
            is_run = (workdir / CONFIG).is_file()
    except OSError:  # a name that is too long: an error of `check_workdir`
        return None
    return read_json(workdir / CONFIG).get(field) if is_run else None


def _remove_run(workdir: Path) -> None:
    """Delete a run's files but the config, by which a rest is known as a run."""
    for name in (SUMMARY, METRICS):  # first: without them the run is not finished
        (workdir / name).unlink(missing_ok=True)
    for name in (CHECKPOINTS, TENSORBOARD, PLOTS, EXPORT, PROFILE):
        if (workdir / name).exists():
            store.remove_folder(workdir / name)
