"""Events for TensorBoard, written by tensorboardX."""

import sys
import time
from collections.abc import Mapping
from typing import Any

from train_jax.devices import processes
from train_jax.output.files import LocalFolder
from train_jax.storage.store import Path


def import_tensorboardx() -> None:
    """Import tensorboardX, but not PyTorch, which takes 1.7 s and is of no use here."""
    is_hidden = sys.modules.setdefault("torch", None) is None  # type: ignore
    try:
        import tensorboardX  # noqa: F401
    finally:
        if is_hidden:
            del sys.modules["torch"]


class EventLog:
    """TensorBoard's event file of a run; what is logged is on the disk at once."""

    def __init__(self, folder: Path, *, first_step: int):
        """Open a file of events; process 0 alone writes.

        Args:
            folder: the file lies there.
            first_step: what was logged of it and later steps before counts no more.
        """
        self._folder = self._writer = None
        if not processes.is_main():
            return
        import_tensorboardx()
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        self._messages: Any = event_pb2
        self._folder = LocalFolder(folder)
        self._folder.path.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(self._folder.path / "events"))
        start = self._messages.SessionLog(status=self._messages.SessionLog.START)
        self._write(first_step, session_log=start)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write numbers of a step, and flush them to the disk or the object store."""
        if self._writer is None or self._folder is None:
            return
        from tensorboardX.summary import scalar

        for name, value in scalars.items():
            self._write(step, summary=scalar(name, value))
        self._writer.flush()
        self._folder.copy()

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None and self._folder is not None:
            self._writer.close()
            self._folder.close()

    def _write(self, step: int, **content: Any) -> None:
        assert self._writer is not None
        event = self._messages.Event(wall_time=time.time(), step=step, **content)
        self._writer.write_event(event)
