"""Lock a run's folder, so that two processes never write to it at the same time.

The lock is a file in the folder, `lock.1`, that names the process that holds it. It is
valid while that process lives; if the process runs on another machine, as long as it is
renewed. The lock of a dead process is not deleted but superseded by `lock.2`, and so
on: the highest number counts. So if two processes find a dead lock at the same moment,
only one of them can create the next file.
"""

import contextlib
import functools
import json
import os
import pathlib
import platform
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from train_jax.output.files import replace_file
from train_jax.storage import store
from train_jax.storage.store import Path

# How often a lock is renewed, and how long after the last time other machines take its
# holder for dead. If it were much shorter, a slow network drive would look the same.
RENEW_SECONDS = 20.0
LEASE_SECONDS = 120.0

_PREFIX = "lock."
# The content of a lock that has been deleted.
_GONE: dict[str, Any] = {}
# The start time of a process that lives, if it cannot be read.
_UNKNOWN = "?"


class InUseError(ValueError):
    """Another process holds the lock of the folder."""


class LostError(OSError):
    """This process no longer holds the lock of the folder."""


class Lock:
    """A lock that this process holds; it is renewed in the background.

    Attributes:
        path: the lock's file.
    """

    def __init__(self, path: Path, holder: dict[str, Any]):
        """Start to renew a lock whose file this process has created."""
        self.path = path
        self._holder = holder
        self._is_released = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Check, before each write, that this process still holds the lock.

        Raises:
            LostError: if it does not.
        """
        folder, newest = self.path.parent, _newest(self.path.parent)
        if newest is None:
            raise LostError(
                f"{folder} or its lock was deleted; nothing more is written"
            )
        holder = _read(newest)
        # No token can be read while this process renews the lock.
        is_own = holder.get("token") in (None, self._holder["token"])
        if newest != self.path or not is_own:
            raise LostError(
                f"{_describe(holder)} has taken over {folder}; nothing more is written"
            )

    def close(self) -> None:
        """Delete the lock, unless it was lost or cannot be reached."""
        self._is_released.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            self.check()
            self.path.unlink()

    def _renew(self) -> None:
        while not self._is_released.wait(RENEW_SECONDS):
            # A full or unreachable disk may recover until the next time.
            with contextlib.suppress(OSError):
                self.check()
                _rewrite(self.path, self._holder | {"renewed": time.time()})


def acquire(folder: Path, sleep: Callable[[float], object] = time.sleep) -> Lock:
    """Lock a folder, creating it if need be.

    Raises:
        InUseError: if another process holds it; names the process and its host.
        OSError: if the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        dead = _dead_locks(folder)
        _check_not_renewed(dead, folder, sleep)
        number = 1 + max(map(_number, dead), default=0)
        path, holder = folder / f"{_PREFIX}{number}", _this_process()
        if not store.create_file(path, json.dumps(holder).encode()):
            continue  # another process was faster
        try:
            # A lock that was released and acquired meanwhile may have any number.
            others = _dead_locks(folder, own=path)
        except InUseError:
            path.unlink(missing_ok=True)
            raise
        for other in others:
            other.unlink(missing_ok=True)
        return Lock(path, holder)


def check_free(folder: Path) -> None:
    """Raise InUseError if a living process holds the lock; write nothing."""
    _dead_locks(folder)


def is_lock(path: Path) -> bool:
    """Whether a file is a lock of its folder."""
    return path.name.startswith(_PREFIX)


def _rewrite(path: Path, holder: dict[str, Any]) -> None:
    """Replace the content of a lock's file."""
    text = json.dumps(holder)
    if isinstance(path, pathlib.Path):
        # "r+" does not create a file that another process has deleted.
        with path.open("r+", encoding="utf-8") as file:
            file.write(text)
            file.truncate()
    else:
        replace_file(path, text)


def _dead_locks(folder: Path, own: Path | None = None) -> list[Path]:
    """List the locks of dead processes; raise InUseError for one of a living one."""
    dead = []
    for path in _locks(folder):
        if path == own:
            continue
        holder = _read(path)
        if holder is _GONE:
            continue  # released just now
        is_dead, age = _is_dead(holder), abs(time.time() - holder["renewed"])
        if is_dead is False:
            raise InUseError(f"{str(folder)!r} is in use by {_describe(holder)}")
        if is_dead is None and age < LEASE_SECONDS:  # whichever clock is ahead
            raise InUseError(
                f"{str(folder)!r} is in use by {_describe(holder)}; if that machine is "
                f"lost, start again in {LEASE_SECONDS - age:.0f} s"
            )
        dead.append(path)
    return dead


def _check_not_renewed(
    dead: list[Path], folder: Path, sleep: Callable[[float], object]
) -> None:
    """Wait whether a lock that seems dead is renewed: the other clock may be wrong."""
    before = {path: holder for path in dead if (holder := _read(path)) is not _GONE}
    unknown = [holder for holder in before.values() if _is_dead(holder) is None]
    if unknown:
        print(
            f"waiting {2 * RENEW_SECONDS:.0f} s for a sign of life of "
            f"{_describe(unknown[-1])}, which held {str(folder)!r}",
            file=sys.stderr,
            flush=True,
        )
        sleep(2 * RENEW_SECONDS)
    for path, holder in before.items():
        if _read(path) not in (holder, _GONE):
            raise InUseError(f"{str(folder)!r} is in use by {_describe(holder)}")


def _is_dead(holder: dict[str, Any]) -> bool | None:
    """Whether a lock's process has ended; None if that cannot be known here."""
    if holder.get("machine") != _machine():
        return None
    start = _start_time(holder["pid"])
    if start == _UNKNOWN or holder["start"] == _UNKNOWN:
        return None
    return start != holder["start"]


def _describe(holder: dict[str, Any]) -> str:
    pid, host = holder.get("pid", "unknown"), holder.get("host", "unknown")
    return f"process {pid} on host {host}"


def _locks(folder: Path) -> list[Path]:
    try:
        with store.errors(folder):
            paths = list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [p for p in paths if is_lock(p) and p.name[len(_PREFIX) :].isdecimal()]


def _newest(folder: Path) -> Path | None:
    return max(_locks(folder), key=_number, default=None)


def _number(path: Path) -> int:
    return int(path.name.removeprefix(_PREFIX))


def _read(path: Path) -> dict[str, Any]:
    """Read who holds a lock; `_GONE` if the file has been deleted.

    While the file is being written, only its time can be read.
    """
    try:
        with store.errors(path):
            text, written = path.read_text(encoding="utf-8"), store.modified(path)
    except FileNotFoundError:
        return _GONE
    except UnicodeDecodeError:
        text, written = "", store.modified(path)
    with contextlib.suppress(ValueError):
        holder = json.loads(text)
        if isinstance(holder, dict) and "renewed" in holder:
            return holder
    return {"renewed": written}


def _this_process() -> dict[str, Any]:
    """Describe this process, as the content of its lock."""
    return {
        "token": uuid.uuid4().hex,
        "pid": os.getpid(),
        "start": _start_time(os.getpid()),
        "host": platform.node(),
        "machine": _machine(),
        "renewed": time.time(),
    }


@functools.cache
def _machine() -> str:
    """Identify the machine, its boot, and the container."""
    parts = [platform.node()]
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id")
    if boot.exists():
        boot_id = boot.read_text(encoding="ascii").strip()
        parts += [boot_id, os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)


def _start_time(pid: int) -> str | None:
    """Read when a process of this machine started; None if there is no such process."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except PermissionError:
        pass  # it exists and belongs to another user
    try:
        if pathlib.Path("/proc/self/stat").exists():
            stat = pathlib.Path(f"/proc/{pid}/stat").read_bytes()
            # The command's name, in parentheses, may contain anything.
            state, *fields = stat.rpartition(b")")[2].decode().split()
            return None if state in "ZX" else fields[18]
        shown = subprocess.run(
            ["ps", "-o", "lstart=", "-p", str(pid)],
            env=os.environ | {"LC_ALL": "C", "TZ": "UTC"},
            capture_output=True,
            text=True,
            check=False,
        )
        return shown.stdout.strip() or _UNKNOWN
    except OSError:  # hidden from this user
        return _UNKNOWN
