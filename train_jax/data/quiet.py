"""Silence what libraries print to stderr and warn of."""

import contextlib
import os
import threading
import warnings
from collections.abc import Iterator

# Stderr belongs to the whole process, so one thread at a time redirects it.
_stderr = threading.Lock()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress Python's warnings, and what C libraries write to stderr."""
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
