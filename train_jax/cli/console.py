"""Exit codes, error lines, and output that nobody reads."""

import io
import logging
import os
import sys
from typing import Any

# Exit codes of a run that cannot go on, and of one that was asked to stop and goes on
# when it is started again (EX_TEMPFAIL). Wrong input is 2, as with argparse.
FAILED, STOPPED = 1, 75


class _Output(io.FileIO):
    """A file that goes on in silence when nobody can read it any more.

    Its reader, `head` for instance, has gone, or its disk is full.
    """

    def write(self, data: Any) -> int:
        """Write bytes, or throw them away."""
        try:
            return super().write(data)
        except OSError:
            _silence(self.fileno())
            return len(data)


def _silence(descriptor: int) -> None:
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, descriptor)
    os.close(silence)


def prepare_output() -> None:
    """Let nothing that is printed end the program.

    What the terminal cannot show is replaced, and what nobody reads is thrown away.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or stream is not getattr(sys, f"__{name}__"):
            continue  # somebody, a test for instance, catches what is printed
        output = _Output(stream.fileno(), "w", closefd=False)
        is_buffered = not stream.write_through  # as it is by python -u
        replacement = io.TextIOWrapper(
            io.BufferedWriter(output) if is_buffered else output,  # type: ignore
            encoding=stream.encoding,
            errors="replace",
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        setattr(sys, name, replacement)


def silence_stdout() -> None:
    """Print nothing any more, but errors."""
    if sys.stdout is not None:
        _silence(sys.stdout.fileno())


def silence_libraries() -> None:
    """Keep libraries from logging what is raised as well, or is of no consequence.

    Orbax logs what it raises, with tracebacks; Matplotlib that it cannot keep a list of
    fonts. After the first file that cannot be written, TensorStore reports on each of
    the others, and does so to an event loop that is closed, with tracebacks.
    """
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    sys.unraisablehook = _print_unraisable


def _print_unraisable(unraisable: Any) -> None:
    """Print an exception that nobody can catch, unless it is of a closed event loop."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def print_error(program: str, error: Exception) -> None:
    """Say in one line what is wrong."""
    print(f"{program}: error: {' '.join(str(error).split())}", file=sys.stderr)
