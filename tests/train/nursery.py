"""Start train.py many times without importing everything anew each time.

The tests hold a `Nursery`; it talks to a program, `main`, that imports what train.py
needs, without letting JAX start, and then forks for every command line that it reads.
"""

import contextlib
import importlib
import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

# What train.py imports, and when it reads the digits and writes its logs.
import sklearn.datasets  # noqa: F401

from train_jax import train
from train_jax.devices import compiler
from train_jax.output import tensorboard
from train_jax.run import experiment


class Nursery:
    """Starts train.py, many times, each in a process of its own."""

    def __init__(
        self,
        folder: pathlib.Path,
        fields: Mapping[str, Any],
        *,
        cache: pathlib.Path,
        variables: Mapping[str, str] | None = None,
        modules: Sequence[str] = (),
    ):
        """Start the program below.

        Args:
            folder: for what it prints.
            fields: of the config, for all runs.
            cache: folder for compiled programs.
            variables: of the environment.
            modules: to import beforehand, beside those of train.py.
        """
        self._fields = [f"--config.{k}={v}" for k, v in fields.items()]
        self._output = folder / "output.txt"
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "",
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            **(variables or {}),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.train.nursery", *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            text=True,
        )
        self._pid = 0

    def start(
        self,
        workdir: pathlib.Path | str,
        *arguments: str,
        file_size: int | None = None,
        has_plots: bool = False,
    ) -> None:
        """Start a run.

        Args:
            workdir: its folder.
            *arguments: of the command line.
            file_size: the largest file that it may write, bytes, as if the disk were
                full.
            has_plots: whether plots are drawn at the end, which takes a second.
        """
        command = {
            "arguments": [
                *("--config", "configs/vit_digits.py", "--workdir", str(workdir)),
                *self._fields,
                *arguments,
            ],
            "output": str(self._output),
            "file_size": file_size,
            "has_plots": has_plots,
        }
        self._output.unlink(missing_ok=True)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        self._pid = self._number()

    def send(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self._pid, number)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Suspend it: what lies on the disk is what SIGKILL would leave now."""
        self.send(signal.SIGSTOP)
        threads = pathlib.Path(f"/proc/{self._pid}/task")
        self.wait_until(lambda: all(map(_is_stopped, threads.iterdir())))
        yield
        self.send(signal.SIGCONT)

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


def _is_stopped(thread: pathlib.Path) -> bool:
    """Whether a thread, given by its folder in /proc, is stopped."""
    try:
        return (thread / "stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:  # it has just ended
        return False


def main() -> None:
    """Read a command a line; answer with the process's id, then its exit status."""
    tensorboard.import_tensorboardx()
    compiler._LLVM_LEVEL = 0  # as in the tests' own process
    for module in sys.argv[1:]:
        importlib.import_module(module)
    assert threading.active_count() == 1, "a fork would lose threads"
    for line in sys.stdin:
        command = json.loads(line)
        # What it prints goes through a pipe: there, no limit of a file's size counts.
        with (
            open(command.pop("output"), "wb") as file,
            subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file) as cat,
        ):
            assert cat.stdin is not None
            pid = os.fork()
            if pid == 0:
                os._exit(_live(cat.stdin.fileno(), **command))
            print(pid, flush=True)
            _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _live(
    output: int, arguments: list[str], file_size: int | None, has_plots: bool
) -> Any:
    """Run train.py as a child; see `Nursery.start`.

    Args:
        output: descriptor that it prints to.
        arguments: the command line.
        file_size: the largest file that it may write.
        has_plots: whether plots are drawn.
    """
    for number in (1, 2):
        os.dup2(output, number)
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    sys.stdout.reconfigure(line_buffering=True)  # the tests wait for some lines
    experiment.print_layers = lambda *_: None  # nobody reads the table
    if not has_plots:
        experiment._plot = lambda *_: None
    code = train.main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    main()
