"""The errors that end a run; they name the last good checkpoint."""

import contextlib
import traceback
from collections.abc import Callable, Iterator

import jax

from train_jax.data.loader import LoaderError
from train_jax.output.checkpoint import CheckpointError, Checkpoints
from train_jax.storage.store import Path


class Stopped(Exception):
    """The run was asked to stop, and has saved what the next start needs."""


class Failed(Exception):
    """The run cannot go on; what was saved before is intact."""


class Diverged(Failed):
    """The loss is not finite any more."""


class NonFiniteError(FloatingPointError):
    """The loss is not finite any more.

    Attributes:
        step: the first step in or after which something was not, counted from 1.
    """

    def __init__(self, step: int, *, found: str = "the loss is not finite in"):
        """Keep the step; `found` is the message up to it."""
        super().__init__(
            f"{found} step {step}; a lower config.optimizer.learning_rate, a longer "
            "warm-up or a clip_norm may help"
        )
        self.step = step


@contextlib.contextmanager
def open_checkpoints(
    directory: Path,
    *,
    keep: int,
    check_lock: Callable[[], object],
    diagnose: Callable[[Checkpoints, int], str],
) -> Iterator[Checkpoints]:
    """Open the checkpoints of a run; wait for the last save at the end.

    Args:
        directory: see `Checkpoints`.
        keep: see `Checkpoints`.
        check_lock: see `Checkpoints`.
        diagnose: explains the step in which the loss was not finite.

    Raises:
        Failed: if a file cannot be written or read.
        Diverged: if the loss is not finite any more.
    """
    try:
        checkpoints = Checkpoints(directory, keep=keep, check_lock=check_lock)
    except (ValueError, OSError) as error:
        raise Failed(str(error)) from error
    with contextlib.ExitStack() as stack:
        stack.callback(checkpoints.close)
        try:
            yield checkpoints
            checkpoints.wait()
        except CheckpointError as error:
            raise Failed(f"{error}; {checkpoints.last_good}") from error
        except LoaderError as error:
            _wait_quietly(checkpoints)
            raise Failed(f"{error}; {checkpoints.last_good}") from error
        except NonFiniteError as error:
            _wait_quietly(checkpoints)
            traceback.clear_frames(error.__traceback__)  # they hold the training state
            where = diagnose(checkpoints, error.step)
            raise Diverged(f"{error}{where}; {checkpoints.last_good}") from error
        except OSError as error:
            _wait_quietly(checkpoints)
            reason = str(error)
            if error.strerror:
                reason = f"{error.filename or directory.parent}: {error.strerror}"
            raise Failed(f"{reason}; {checkpoints.last_good}") from error
        except jax.errors.JaxRuntimeError:
            if jax.process_count() > 1:
                # Another one may be lost, and a save would wait for it.
                stack.pop_all()
            else:
                _wait_quietly(checkpoints)
            raise


def _wait_quietly(checkpoints: Checkpoints) -> None:
    """Wait for a save; if it fails, it is not the last good checkpoint."""
    with contextlib.suppress(CheckpointError):
        checkpoints.wait()
