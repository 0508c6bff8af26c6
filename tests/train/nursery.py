"""Start train.py many times without importing everything anew each time.

The tests hold a `Nursery`; it talks to a program, `main`, that imports what train.py
needs, without letting JAX start, and then forks for every command line that it reads.
"""

import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import train_jax.run.experiment  # noqa: F401  (what train.py imports)
from train_jax import train


class Nursery:
    """Starts train.py, many times, each in a process of its own."""

    def __init__(self, folder: pathlib.Path, fields: Mapping[str, Any]):
        """Start the program below.

        Args:
            folder: for what it prints and compiles.
            fields: of the config, for all runs.
        """
        self._fields = [f"--config.{k}={v}" for k, v in fields.items()]
        self._output = folder / "output.txt"
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "",
            "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.train.nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            text=True,
        )
        self._pid = 0

    def start(
        self, workdir: pathlib.Path, *arguments: str, file_size: int | None = None
    ) -> None:
        """Start a run."""
        command = {
            "arguments": [
                *("--config", "configs/vit_digits.py", "--workdir", str(workdir)),
                *self._fields,
                *arguments,
            ],
            "output": str(self._output),
            "file_size": file_size,
        }
        self._output.unlink(missing_ok=True)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        self._pid = self._number()

    def send(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self._pid, number)

    def wait(self) -> int:
        """Wait for its end; returns its exit status, negative for a signal.

        After two minutes it is killed.
        """
        timer = threading.Timer(120, self.send, [signal.SIGKILL])
        timer.start()
        try:
            return self._number()
        finally:
            timer.cancel()

    def wait_until(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        """Wait until something has become true."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.output
            time.sleep(0.001)

    def wait_until_training(self) -> None:
        """Wait until the first epoch is over."""
        self.wait_until(lambda: "\nepoch" in self.output)

    @property
    def output(self) -> str:
        """What it has printed."""
        return self._output.read_text() if self._output.exists() else ""

    def close(self) -> None:
        """End the nursery."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _number(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


def main() -> None:
    """Read a command a line; answer with the process's id, then its exit status."""
    assert threading.active_count() == 1, "a fork would lose threads"
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            os._exit(_live(**json.loads(line)))
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _live(arguments: list[str], output: str, file_size: int | None) -> Any:
    """Run train.py as a child.

    Args:
        arguments: the command line.
        output: a file for what it prints.
        file_size: the largest file that it may write, bytes, as if the disk were full.
    """
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(file, number)
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    code = train.main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    main()
