"""Record a trace of some training steps, for TensorBoard, XProf and Perfetto."""

import contextlib
from types import TracebackType

import jax

from train_jax.devices import processes
from train_jax.output.files import LocalFolder
from train_jax.storage.store import Path


class Profiler:
    """Records what devices and host do from one step to another.

    Attributes:
        steps: number of steps done at the beginning and at the end of the trace; empty
            for none.
    """

    def __init__(self, folder: Path, steps: tuple[int, int] | None):
        """Record nothing yet.

        Args:
            folder: where to write; each trace gets a folder of its own.
            steps: numbers of steps done, the first smaller; None to record nothing.
        """
        self.steps = steps or ()
        self._folder = folder
        self._local: LocalFolder | None = None

    def reach(self, step: int) -> None:
        """Begin or end at so many steps done, if that is due.

        A run that is resumed between the two records nothing. Of several processes the
        first one records its devices.
        """
        if not processes.is_main():
            return
        if self.steps[:1] == (step,):
            self._local = LocalFolder(self._folder)
            jax.profiler.start_trace(self._local.path, create_perfetto_trace=True)
        elif self.steps[1:] == (step,):
            self._stop()

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Write what was recorded, if the training ends before the last step."""
        self._stop()

    def _stop(self) -> None:
        if self._local is None:
            return
        with contextlib.closing(self._local) as local:
            self._local = None
            jax.profiler.stop_trace()
            local.copy()
            print(f"trace of the steps written to {self._folder}")
