"""Silence what libraries print to stderr and warn of."""

import contextlib
import os
import threading
import warnings
from collections.abc import Iterator

# Stderr belongs to the whole process, so one thread at a time redirects it.
_stderr = threading.Lock()


class _Warnings:
    """Python's filters of warnings, which belong to the whole process, too.

    The first thread that wants silence sets them, the last one sets them back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_threads = 0
        self._stack = contextlib.ExitStack()

    @contextlib.contextmanager
    def ignored(self) -> Iterator[None]:
        with self._lock:
            self._num_threads += 1
            if self._num_threads == 1:
                self._stack.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")
        try:
            yield
        finally:
            with self._lock:
                self._num_threads -= 1
                if self._num_threads == 0:
                    self._stack.close()


no_warnings = _Warnings().ignored


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress Python's warnings, and what C libraries write to stderr."""
    with no_warnings(), _stderr, open(os.devnull, "wb") as nowhere:
        stderr = os.dup(2)
        try:
            os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
