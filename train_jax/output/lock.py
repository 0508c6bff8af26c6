"""Lock a run's folder, so that two processes never write to it at the same time.

The lock is a file in the folder, `lock.1`, that says which process holds it. It holds
while that process lives; on another machine, which cannot be asked, while the process
renews it. The lock of a dead process is not taken away but followed by `lock.2`, and
so on: the highest number counts. So two that find a dead lock at the same moment cannot
both succeed, as only one of them can create the next file.
"""

import contextlib
import functools
import json
import os
import pathlib
import platform
import subprocess
import threading
import time
from typing import Any

# How often a lock is renewed, and after how long without that it is taken for dead by
# other machines. Much shorter, and a slow network drive would look like a dead machine.
RENEW_SECONDS = 20.0
LEASE_SECONDS = 120.0

_PREFIX = "lock."


class InUseError(ValueError):
    """Another process holds the folder."""


class LostError(OSError):
    """Another process has taken the folder over."""


class Lock:
    """A lock that this process holds; it is renewed in the background.

    Attributes:
        path: the lock's file.
    """

    def __init__(self, path: pathlib.Path):
        """Start to renew a lock whose file this process has created."""
        self.path = path
        self._is_released = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Make sure that the lock is still this process's own; before each write.

        Raises:
            LostError: if it is not.
        """
        newest = _newest(self.path.parent)
        if newest != self.path:
            by = "" if newest is None else f", {_describe(_read(newest))}"
            raise LostError(
                f"{self.path.parent} is no longer this process's: it was taken over or "
                f"deleted{by}; nothing more is written"
            )

    def close(self) -> None:
        """Delete the lock, unless it was lost."""
        self._is_released.set()
        self._thread.join()
        self.path.unlink(missing_ok=True)

    def _renew(self) -> None:
        while not self._is_released.wait(RENEW_SECONDS):
            # A full or unreachable disk may be back at the next turn.
            with contextlib.suppress(OSError):
                self.check()
                draft = self.path.with_name(f"{self.path.name}.draft")
                draft.write_text(_content(), encoding="utf-8")
                os.replace(draft, self.path)


def acquire(folder: pathlib.Path) -> Lock:
    """Lock a folder, which is made if need be.

    Raises:
        InUseError: naming the process that holds it, and its host.
        OSError: if the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        path = folder / f"{_PREFIX}{_free_number(folder)}"
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(_content())
        except FileExistsError:
            continue  # Somebody was faster.
        if _newest(folder) != path:
            # The number was free because a later one is in use already.
            path.unlink(missing_ok=True)
            continue
        for older in _locks(folder):
            if older != path:
                older.unlink(missing_ok=True)
        return Lock(path)


def check_free(folder: pathlib.Path) -> None:
    """Raise InUseError if a living process holds the folder; write nothing."""
    _free_number(folder)


def _free_number(folder: pathlib.Path) -> int:
    """The number of the lock that follows a dead one, or none; see `check_free`."""
    newest = _newest(folder)
    if newest is None:
        return 1
    try:
        holder = _read(newest)
        renewed = holder.get("renewed", newest.stat().st_mtime)
    except FileNotFoundError:
        return 1  # Released just now.
    if holder.get("machine") == _machine():
        if _start_time(holder["pid"]) == holder["start"]:
            raise InUseError(f"{str(folder)!r} is in use {_describe(holder)}")
        return _number(newest) + 1
    # A clock may be wrong in either direction.
    left = LEASE_SECONDS - abs(time.time() - renewed)
    if left > 0:
        raise InUseError(
            f"{str(folder)!r} is in use {_describe(holder)}; if that was lost, the "
            f"folder is free in {left:.0f} s"
        )
    return _number(newest) + 1


def is_lock(path: pathlib.Path) -> bool:
    """Whether a file belongs to the lock of its folder."""
    return path.name.startswith(_PREFIX)


def _describe(holder: dict[str, Any]) -> str:
    pid, host = holder.get("pid", "unknown"), holder.get("host", "unknown")
    return f"by process {pid} on host {host}"


def _locks(folder: pathlib.Path) -> list[pathlib.Path]:
    try:
        paths = list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [p for p in paths if p.name.removeprefix(_PREFIX).isdecimal() and is_lock(p)]


def _newest(folder: pathlib.Path) -> pathlib.Path | None:
    return max(_locks(folder), key=_number, default=None)


def _number(path: pathlib.Path) -> int:
    return int(path.name.removeprefix(_PREFIX))


def _read(path: pathlib.Path) -> dict[str, Any]:
    """Read who holds a lock; nothing of a file that is being written just now."""
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _content() -> str:
    """What the lock of this process says."""
    pid = os.getpid()
    holder = {
        "pid": pid,
        "start": _start_time(pid),
        "host": platform.node(),
        "machine": _machine(),
        "renewed": time.time(),
    }
    return json.dumps(holder)


@functools.cache
def _machine() -> str:
    """Identify the machine since its last start, and the container on it."""
    parts = [platform.node()]
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id")
    if boot.exists():
        parts += [
            boot.read_text(encoding="ascii").strip(),
            os.readlink("/proc/self/ns/pid"),
        ]
    return " ".join(parts)


def _start_time(pid: int) -> str | None:
    """When a process of this machine started; None if there is no such process."""
    stat = pathlib.Path(f"/proc/{pid}/stat")
    if pathlib.Path("/proc/self/stat").exists():
        try:
            # The command's name, in parentheses, may hold anything.
            text = stat.read_bytes().rpartition(b")")[2].decode()
        except (FileNotFoundError, ProcessLookupError):
            return None
        state, *fields = text.split()
        return None if state in "ZX" else fields[18]
    command = ["ps", "-o", "lstart=", "-p", str(pid)]
    ps = subprocess.run(command, capture_output=True, text=True, check=False)
    return ps.stdout.strip() or None
