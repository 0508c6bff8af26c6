"""Start train.py many times without importing everything anew each time.

A program of its own: it imports what train.py needs, without letting JAX start, and
then forks for every command line that it reads.
"""

import json
import os
import resource
import sys
import threading
from typing import Any

import train
from train_jax import experiment, loop, report  # noqa: F401  (what train.py imports)


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
