"""Time whole commands, each in a process of its own."""

import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence

from benchmarks.timing import Timing

# The arguments of a program, "{run}" standing for a new folder each time, and where it
# keeps what it need not make twice; None for an empty folder each time.
Command = tuple[Sequence[str], pathlib.Path | None]


def run(arguments: Sequence[str], cache: pathlib.Path) -> tuple[float, int]:
    """Run a Python program to its end.

    Args:
        arguments: what follows `python` in the command line.
        cache: XDG_CACHE_HOME, and the cache of PyTorch's compiler.

    Returns:
        Seconds, and peak memory in bytes, of the largest of its processes.

    Raises:
        RuntimeError: if it fails.
    """
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": "",  # a user's would not be empty
        "XDG_CACHE_HOME": str(cache),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
    }
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *arguments], stdout=output, stderr=output, env=environment
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{text}")
    unit = 1 if sys.platform == "darwin" else 1024
    return seconds, usage.ru_maxrss * unit


def take_turns(
    case: str, programs: Mapping[str, Command], *, rounds: int, images: int
) -> list[Timing]:
    """Run each command once a round; see `benchmarks.timing.take_turns`."""
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    peak_bytes: dict[str, list[int]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, (arguments, cache) in programs.items():
            with tempfile.TemporaryDirectory() as scratch:
                folder = pathlib.Path(scratch)
                filled = [x.format(run=folder / "run") for x in arguments]
                elapsed, peak = run(filled, cache or folder / "cache")
            seconds[name].append(elapsed)
            peak_bytes[name].append(peak)
    return [
        Timing(case, name, seconds[name], images, peak_bytes[name]) for name in programs
    ]
