"""Save and restore checkpoints with Orbax."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from train_jax.devices import processes
from train_jax.learning.state import TrainState
from train_jax.output import checksums
from train_jax.output.checkpoint_search import (
    METADATA,
    STATE,
    rename_damaged,
    warn_of_unfinished,
)
from train_jax.output.checkpoint_search import CheckpointError as CheckpointError
from train_jax.output.checkpoint_search import find as find
from train_jax.storage import store
from train_jax.storage.store import Path

# The score of a state that was not evaluated, below every accuracy.
NOT_SCORED = -1.0


class Checkpoints:
    """The checkpoints of a run, each in a folder named by its step.

    A save goes on in the background while training continues. A checkpoint appears
    under its name only when it is complete, with the checksums of its files, so that a
    run killed while it saves leaves the one before as the newest.

    Attributes:
        directory: where they lie.
        newest: step of the newest one that is complete; None if there is none.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep: int,
        check_lock: Callable[[], object] = lambda: None,
    ):
        """Open the folder, creating it if need be; rename damaged checkpoints.

        They become `damaged_STEP`. The newest one is verified, and the one before only
        if it is damaged, and so on; of all others only the score.

        Args:
            directory: where the checkpoints lie.
            keep: how many of the newest are kept, beside the best one.
            check_lock: called before each write; an OSError stops it.

        Raises:
            CheckpointError: if there are some, but all of them are damaged or of an old
                version.
        """
        self.directory = store.absolute(directory)
        with store.errors(self.directory):
            self._open(keep)
        self._saving: int | None = None
        self._check_lock = check_lock

    def _open(self, keep: int) -> None:
        """Find the newest checkpoint, and open the folder; see `__init__`."""
        self.newest = self._find_on_main(lambda: rename_damaged(self.directory))
        if processes.is_main():
            warn_of_unfinished(self.directory)
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
                async_options=ocp.AsyncOptions(
                    post_finalization_callback=self._write_checksums
                ),
            ),
        )

    def save(
        self,
        step: int,
        state: TrainState,
        metadata: Mapping[str, Any],
        *,
        score: float = NOT_SCORED,
    ) -> None:
        """Start to save the state as that of `step`; returns before it is written.

        Args:
            step: number of steps done.
            state: the state.
            metadata: what else there is to know, as values that JSON knows.
            score: the higher, the better.

        Raises:
            CheckpointError: if the save before this one failed, or this one does.
        """
        self.wait()
        items = {
            STATE: ocp.args.StandardSave(_without_replicas(state)),
            METADATA: ocp.args.JsonSave(dict(metadata)),
        }
        self._saving = step
        with self._raising_checkpoint_errors():
            self._check_lock()
            self._manager.save(
                step, args=ocp.args.Composite(**items), metrics={"score": score}
            )

    def best(self) -> int | None:
        """Find the checkpoint that validated best; see `find`. Call it after `wait`."""
        return self._find_on_main(lambda: find(self.directory, "best"))

    def wait(self) -> None:
        """Wait for the save that is under way.

        Raises:
            CheckpointError: if it fails.
        """
        with self._raising_checkpoint_errors():
            self._manager.wait_until_finished()
        if self._saving is not None:
            self.newest, self._saving = self._saving, None

    def _find_on_main(self, find_step: Callable[[], int | None]) -> int | None:
        """Let process 0 find a step, and broadcast it; errors are raised in all."""

        def find_or_fail() -> int | None:
            with store.errors(self.directory):
                return find_step()

        try:
            found = processes.call_on_main(find_or_fail)
        except ValueError as error:
            raise CheckpointError(str(error)) from error
        step = processes.broadcast_from_main(-1 if found is None else found)
        return None if step < 0 else step

    @property
    def last_good(self) -> str:
        """Say which checkpoint there is to go on from."""
        if self.newest is None:
            return "there is no checkpoint yet"
        return f"the last good checkpoint is {self.directory / str(self.newest)}"

    def close(self) -> None:
        """Release the folder; after `wait`, or after an error."""
        # `wait` has raised what went wrong with a save.
        with contextlib.suppress(ValueError, OSError):
            self._manager.close()  # completes a save that is under way
        self._saving = None

    @contextlib.contextmanager
    def _raising_checkpoint_errors(self) -> Iterator[None]:
        """Turn what Orbax raises when it cannot write into a CheckpointError."""
        try:
            with store.errors(self.directory):
                yield
        except (ValueError, OSError) as error:
            # TensorStore reports what the file system says as a ValueError.
            step, self._saving = self._saving, None
            reason = " ".join(str(error).split())
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written: {reason}"
            ) from error

    def _write_checksums(self) -> None:
        """Write the checksums of the checkpoint that is about to be complete."""
        # Orbax gives the folder its name right after this; the files beside the items,
        # its notes of times, change once more.
        self._check_lock()
        (folder,) = (
            path
            for path in self.directory.iterdir()
            if path.name.partition(".")[0] == str(self._saving)
        )
        checksums.write_checksums(folder)


def _without_replicas(state: TrainState) -> TrainState:
    """Keep one copy of each array that all devices of this process hold.

    Orbax would let every device write a slice of it, and compile a program for each
    shape: hundreds of them.
    """

    def first(x: Any) -> Any:
        is_whole = x.is_fully_replicated and x.is_fully_addressable
        return x.addressable_data(0) if is_whole else x

    return jax.tree.map(first, state)


def read_metadata(directory: Path, step: int) -> dict[str, Any]:
    """Read the metadata of a complete checkpoint."""
    file = directory / str(step) / METADATA / "metadata"
    with store.errors(file):
        return json.loads(file.read_text(encoding="utf-8"))


def restore(directory: Path, step: int, abstract_state: TrainState) -> TrainState:
    """Read the state of a complete checkpoint.

    Args:
        directory: where the checkpoints lie.
        step: of a complete checkpoint.
        abstract_state: shapes, dtypes and shardings of the state; it may have been
            saved from any other devices.

    Raises:
        CheckpointError: if it is of another structure.
    """
    with (
        contextlib.closing(ocp.StandardCheckpointer()) as checkpointer,
        _open_state(directory, step) as folder,
    ):
        return checkpointer.restore(folder, abstract_state)


def restore_variables(directory: Path, step: int, abstract_state: TrainState) -> Any:
    """Read the variables to evaluate with, and nothing else of the state.

    Args:
        directory: where the checkpoints lie.
        step: of a complete checkpoint.
        abstract_state: see `restore`.

    Raises:
        CheckpointError: if they are of another structure.
    """
    names = ["params", "batch_stats"] if abstract_state.ema is None else ["ema"]
    wanted = {name: getattr(abstract_state, name) for name in names}
    arguments = ocp.args.PyTreeRestore(
        wanted,
        restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
        partial_restore=True,
    )
    handler = ocp.PyTreeCheckpointHandler()
    with (
        contextlib.closing(ocp.Checkpointer(handler)) as checkpointer,
        _open_state(directory, step) as folder,
    ):
        restored = checkpointer.restore(folder, args=arguments)
        # What is not there comes back as its description.
        if not all(isinstance(x, jax.Array) for x in jax.tree.leaves(restored)):
            raise ValueError("some of the model's variables are missing")
    return abstract_state.replace(**restored).eval_variables


@contextlib.contextmanager
def _open_state(directory: Path, step: int) -> Iterator[Path]:
    """Yield the folder of a checkpoint's state; name the checkpoint in errors."""
    folder = store.absolute(directory) / str(step) / STATE
    with store.errors(folder):
        try:
            yield folder
        except ValueError as error:
            versions = read_metadata(directory, step).get("versions")
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"checkpoint {step} does not fit this version of the program; it was "
                f"written with {versions}: {reason}"
            ) from error


def _score(metrics: Mapping[str, float]) -> float:
    return metrics["score"]
