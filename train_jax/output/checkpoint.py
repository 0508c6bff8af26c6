"""Saving and restoring the training state, with Orbax, and telling damage."""

import contextlib
import hashlib
import json
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from train_jax.devices import processes
from train_jax.learning.state import TrainState

# The items of a checkpoint, and the file with the checksums of all others.
_STATE, _ABOUT, _SEAL = "state", "about", "checksums.json"
_SCORE = "score"

# The score of a state that was not evaluated, below every accuracy.
NOT_SCORED = -1.0


class CheckpointError(ValueError):
    """A checkpoint cannot be written, or none can be read."""


class Checkpoints:
    """The checkpoints of a run, each in a folder named by its step.

    A save goes on in the background while training continues. A checkpoint appears
    under its name only when it is complete and sealed with the checksums of its files,
    so that a run killed while it saves leaves the one before as the newest.

    Attributes:
        directory: where they lie.
        newest: step of the newest one that is complete; None if there is none.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        *,
        keep: int,
        check_lock: Callable[[], object] = lambda: None,
    ):
        """Open the folder, creating it if need be, and put damaged ones aside.

        Args:
            directory: where the checkpoints lie.
            keep: how many of the newest are kept, beside the best one.
            check_lock: called before each write; an OSError stops it.

        Raises:
            CheckpointError: if there are some, but all of them are damaged.
        """
        self.directory = directory.absolute()
        self._newest_on_main: int | None = None
        processes.call_on_main(self._look_through)
        newest = self._newest_on_main
        newest = processes.broadcast_from_main(-1 if newest is None else newest)
        self.newest = None if newest < 0 else newest
        policies = [
            checkpoint_managers.LatestN(keep),
            checkpoint_managers.BestN(n=1, get_metric_fn=_score),
        ]
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                best_fn=_score,
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                cleanup_tmp_directories=True,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
            ),
        )
        self._saving: int | None = None
        self._check_lock = check_lock

    def _look_through(self) -> None:
        """Find the newest checkpoint, and put the damaged ones aside."""
        complete, damaged = _look_through(self.directory)
        _put_aside(self.directory, damaged)
        self._newest_on_main = max(complete, default=None)

    def save(
        self,
        step: int,
        state: TrainState,
        about: Mapping[str, Any],
        *,
        score: float = NOT_SCORED,
    ) -> None:
        """Start to save the state as that of `step`; returns before it is written.

        Args:
            step: number of steps done.
            state: the state.
            about: what else there is to know, as values that JSON knows.
            score: the higher, the better.

        Raises:
            CheckpointError: if the save before this one failed, or this one does.
        """
        self.wait()
        items = {
            _STATE: ocp.args.StandardSave(state),
            _ABOUT: ocp.args.JsonSave({**about, _SCORE: score}),
        }
        self._saving = step
        with self._explaining_errors():
            self._check_lock()
            self._manager.save(
                step, args=ocp.args.Composite(**items), metrics={"score": score}
            )

    def wait(self) -> None:
        """Wait for the save that is under way.

        Raises:
            CheckpointError: if it fails.
        """
        with self._explaining_errors():
            self._manager.wait_until_finished()
        if self._saving is not None:
            self.newest, self._saving = self._saving, None

    @property
    def last_good(self) -> str:
        """Say which checkpoint there is to go on from."""
        if self.newest is None:
            return "there is no checkpoint yet"
        return f"the last good checkpoint is {self.directory / str(self.newest)}"

    def close(self) -> None:
        """Let go of the folder; after `wait`, or after an error."""
        self._saving = None
        # What went wrong with a save was said by `wait`.
        with contextlib.suppress(ValueError, OSError):
            self._manager.close()

    @contextlib.contextmanager
    def _explaining_errors(self) -> Iterator[None]:
        """Turn what Orbax raises when it cannot write into a CheckpointError."""
        try:
            yield
        except (ValueError, OSError) as error:
            # TensorStore reports what the file system says as a ValueError.
            step, self._saving = self._saving, None
            reason = " ".join(str(error).split())
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written: {reason}"
            ) from error

    def _seal(self) -> None:
        """Write the checksums of the checkpoint that is about to be complete."""
        # Orbax gives the folder its name right after this; the files beside the items,
        # its notes of times, change once more.
        self._check_lock()
        (folder,) = (
            path
            for path in self.directory.iterdir()
            if path.name.partition(".")[0] == str(self._saving)
        )
        checksums = {
            str(path.relative_to(folder)): _checksum(path)
            for path in sorted(folder.glob("*/**/*"))
            if path.is_file()
        }
        (folder / _SEAL).write_text(_seal_text(checksums), encoding="utf-8")


def find_newest(directory: pathlib.Path) -> int | None:
    """Find the newest complete checkpoint, and name those that are damaged.

    Returns:
        Its step; None if there is no checkpoint.

    Raises:
        CheckpointError: if there are some, but all of them are damaged.
    """
    return max(_look_through(directory)[0], default=None)


def find_best(directory: pathlib.Path) -> int | None:
    """Find the complete checkpoint that validated best, of equals the newest.

    Returns, raises: see `find_newest`.
    """
    steps, _ = _look_through(directory)
    return max(
        steps,
        key=lambda step: (read_metadata(directory, step)[_SCORE], step),
        default=None,
    )


def find(directory: pathlib.Path, which: str) -> int | None:
    """Find a checkpoint by what a user calls it: "last", "best" or its step.

    Raises:
        CheckpointError: see `find_newest`; also if the named one is not there.
    """
    if which == "last":
        return find_newest(directory)
    if which == "best":
        return find_best(directory)
    steps, _ = _look_through(directory)
    if not which.isdecimal() or int(which) not in steps:
        known = ", ".join(map(str, steps)) or "none"
        raise CheckpointError(
            f"--checkpoint must be last, best or the step of one of those in "
            f"{str(directory)!r} ({known}), got {which!r}"
        )
    return int(which)


def read_metadata(directory: pathlib.Path, step: int) -> dict[str, Any]:
    """Read what was saved about a complete checkpoint.

    Raises:
        CheckpointError: if it was written by a version that saved less.
    """
    handler = ocp.Checkpointer(ocp.JsonCheckpointHandler())
    with contextlib.closing(handler):
        about = handler.restore(directory.absolute() / str(step) / _ABOUT)
    if _SCORE not in about:
        raise CheckpointError(
            f"checkpoint {step} was written by an older version of this project, which "
            "has to finish or to explain the run; --overwrite starts anew"
        )
    return about


def restore(
    directory: pathlib.Path, step: int, template: TrainState, layout: Any
) -> TrainState:
    """Read a state back.

    Args:
        directory: where the checkpoints lie.
        step: of a complete checkpoint.
        template: a state, concrete or abstract, of the same structure.
        layout: tree of shardings, how the arrays are to lie on the devices; they may
            have lain on any others.
    """
    abstract = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        template,
        layout,
    )
    with contextlib.closing(ocp.StandardCheckpointer()) as checkpointer:
        return checkpointer.restore(directory.absolute() / str(step) / _STATE, abstract)


def _look_through(directory: pathlib.Path) -> tuple[list[int], list[int]]:
    """Find the steps of the complete checkpoints, and of those that are damaged.

    The latter are named on the way; see `find_newest`.
    """
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    complete, damaged = [], []
    for step in sorted(int(name) for name in names if name.isdecimal()):
        damage = _damage(directory / str(step))
        if damage is None:
            complete.append(step)
        else:
            damaged.append(step)
            path = directory / str(step)
            print(f"warning: checkpoint {path} {damage}", file=sys.stderr)
    if damaged and not complete:
        raise CheckpointError(
            f"all checkpoints in {str(directory)!r} are damaged; --overwrite starts "
            "anew"
        )
    return complete, damaged


def _damage(folder: pathlib.Path) -> str | None:
    """Say what is wrong with a checkpoint, if something is."""
    seal = folder / _SEAL
    if not seal.is_file():
        return f"is damaged: {_SEAL} is missing"
    try:
        text = seal.read_text(encoding="utf-8")
        checksums = json.loads(text)["files"]
    except (ValueError, LookupError, TypeError):
        return f"is damaged: {_SEAL} is not readable"
    if text != _seal_text(checksums):
        return f"is damaged: {_SEAL} has changed since it was written"
    for name, checksum in checksums.items():
        if not (folder / name).is_file():
            return f"is damaged: {name} is missing"
        if _checksum(folder / name) != checksum:
            return f"is damaged: {name} has changed since it was written"
    return None


def _seal_text(checksums: Mapping[str, str]) -> str:
    """What the seal says: the checksums of all files, and a checksum of these."""
    own = hashlib.sha256(json.dumps(checksums).encode()).hexdigest()
    return json.dumps({"files": checksums, "sha256": own}, indent=2) + "\n"


def _put_aside(directory: pathlib.Path, damaged: list[int]) -> None:
    """Rename the folders of damaged checkpoints, so that their steps are free."""
    for step in damaged:
        aside = directory / f"damaged_{step}"
        shutil.rmtree(aside, ignore_errors=True)
        (directory / str(step)).rename(aside)


def _checksum(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _score(metrics: Mapping[str, float]) -> float:
    return metrics["score"]
