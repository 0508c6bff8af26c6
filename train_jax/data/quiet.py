"""Silence libraries that print what nobody asked for."""

import contextlib
import os
import threading
import warnings
from collections.abc import Iterator

# Stderr belongs to the whole process: one at a time turns it off and on again.
_stderr = threading.Lock()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep Python libraries from warning, and C libraries from writing to stderr."""
    with (
        _stderr,
        open(os.devnull, "wb") as nowhere,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        stderr = os.dup(2)
        try:
            os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
