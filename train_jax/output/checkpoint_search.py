"""Find the newest or the best checkpoint that is not damaged."""

import contextlib
import json
import sys

from train_jax.output import checksums
from train_jax.storage import store
from train_jax.storage.store import Path

# The items of a checkpoint, each a folder; Orbax writes the last one.
STATE, METADATA, METRICS = "state", "metadata", "metrics"
# Those that version 0.1 wrote in place of the metadata.
_OLD_ITEMS = ("about", "default")


class CheckpointError(ValueError):
    """A checkpoint cannot be written, or none can be read."""


def find(directory: Path, which: str) -> int | None:
    """Find a complete checkpoint, and name damaged ones that would come first.

    Args:
        directory: where the checkpoints lie.
        which: "last"; "best", by validation, of equals the newest; or a step.

    Returns:
        Its step; None if there is no checkpoint.

    Raises:
        CheckpointError: if there are some, but all of them are damaged; if the named
            one is not there or is damaged; if one was written by version 0.1.
    """
    steps = _list_steps(directory)
    if which == "best":
        steps = _sort_by_score(directory, steps)
    elif which != "last":
        if which not in map(str, steps):
            known = ", ".join(map(str, sorted(steps))) or "none"
            raise CheckpointError(
                "checkpoint must be last, best or the step of one of those in "
                f"{str(directory)!r} ({known}), got {which!r}"
            )
        if damage := _find_damage(directory / which):
            raise CheckpointError(f"checkpoint {directory / which} {damage}")
        return int(which)
    return _first_complete(directory, steps)[0]


def has_any(directory: Path) -> bool:
    """Whether a folder holds a checkpoint, complete or not."""
    return bool(_list_steps(directory))


def rename_damaged(directory: Path) -> int | None:
    """Rename damaged checkpoints to damaged_STEP, so that their steps are free.

    They are those without a readable score, as Orbax could not open the folder, and
    those that are newer than the newest complete one.

    Returns:
        The step of the newest complete one; None if there is no checkpoint.

    Raises:
        CheckpointError: see `find`.
    """
    steps = _list_steps(directory)
    try:
        newest, damaged = _first_complete(directory, steps)
        older = [step for step in steps if newest is not None and step < newest]
        damaged += set(older).difference(_sort_by_score(directory, older))
    except CheckpointError as error:
        raise CheckpointError(f"{error}; --overwrite starts anew") from error
    for step in damaged:
        target = directory / f"damaged_{step}"
        with contextlib.suppress(FileNotFoundError):
            store.remove_folder(target)
        (directory / str(step)).rename(target)
    return newest


def warn_of_unfinished(directory: Path) -> None:
    """Print a warning of what is left of saves that were interrupted."""
    unfinished = list(directory.glob("*.orbax-checkpoint-tmp*"))
    if store.is_remote(directory):
        unfinished += [directory / str(n) for n in _list_numbers(directory)]
        unfinished = [folder for folder in unfinished if not _is_committed(folder)]
    for folder in sorted(unfinished):
        warning = f"warning: checkpoint {folder} is not complete, and is not used"
        print(warning, file=sys.stderr)


def _list_steps(directory: Path) -> list[int]:
    """List the steps of all checkpoints, the newest first."""
    steps = _list_numbers(directory)
    if store.is_remote(directory):
        steps = [step for step in steps if _is_committed(directory / str(step))]
    return steps


def _is_committed(folder: Path) -> bool:
    """Whether Orbax has ended a save in an object store, which cannot rename it."""
    return (folder / "commit_success.txt").exists()


def _list_numbers(directory: Path) -> list[int]:
    """List the numbers among the names in a folder, the highest first."""
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    steps = [int(name) for name in names if name.isdecimal() and name.isascii()]
    return sorted((step for step in steps if str(step) in names), reverse=True)


def _sort_by_score(directory: Path, steps: list[int]) -> list[int]:
    """Sort checkpoints, the best first; leave out those without a readable score."""
    scores = {}
    for step in steps:
        folder = directory / str(step)
        if not _warn_of_damage(folder, METRICS):
            text = (folder / METRICS / "metrics").read_text(encoding="utf-8")
            scores[step] = json.loads(text)["score"]
    return sorted(scores, key=lambda step: (scores[step], step), reverse=True)


def _first_complete(directory: Path, steps: list[int]) -> tuple[int | None, list[int]]:
    """Find the first complete one of some checkpoints, and the damaged ones before.

    Raises:
        CheckpointError: if all checkpoints of the folder are damaged.
    """
    damaged = []
    for step in steps:
        if not _warn_of_damage(directory / str(step)):
            return step, damaged
        damaged.append(step)
    if _list_steps(directory):
        raise CheckpointError(f"all checkpoints in {str(directory)!r} are damaged")
    return None, []


def _warn_of_damage(folder: Path, item: str = "") -> bool:
    """Whether a checkpoint, or one item of it, is damaged; print a warning if so."""
    damage = _find_damage(folder, item)
    if damage:
        print(f"warning: checkpoint {folder} {damage}", file=sys.stderr)
    return damage is not None


def _find_damage(folder: Path, item: str = "") -> str | None:
    """Say what is wrong with a checkpoint, or with one item of it, if something is."""
    is_old = any((folder / name).is_dir() for name in _OLD_ITEMS)
    if is_old and not (folder / METADATA).exists():
        raise CheckpointError(f"checkpoint {folder} was written by version 0.1")
    damage = checksums.find_damage(folder, item)
    return damage and f"is damaged: {damage}"
