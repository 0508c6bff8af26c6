"""Turn SIGTERM and Ctrl-C into a stop between two training steps.

Imports nothing slow, so that a command can handle signals before it imports JAX.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_SHOW_CURSOR = "\x1b[?25h"


class StopRequest:
    """Request to stop, made by SIGTERM or SIGINT while inside this context.

    A second SIGINT ends the program at once, also while it computes or compiles.
    """

    def __init__(self, *, is_setting_up: bool = False) -> None:
        """Start without a request.

        Args:
            is_setting_up: whether there is nothing to save yet, until the end of
                `interrupting`.
        """
        self._is_made = False
        self._is_setting_up = is_setting_up
        self._is_interrupting = False

    def __call__(self) -> bool:
        """Whether a signal has asked the program to stop."""
        return self._is_made

    def __enter__(self) -> "StopRequest":
        # Python runs handlers in the main thread, between two of its instructions, and
        # a step may take long. Into this pipe it writes each signal without delay.
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._before = {s: signal.signal(s, self._handle) for s in _SIGNALS}
        self._pipe_before = signal.set_wakeup_fd(self._writer)
        self._thread = threading.Thread(target=self._watch_signals, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._pipe_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._writer)  # ends the thread
        self._thread.join()
        os.close(self._reader)

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """During the last part of setting up, let a signal raise KeyboardInterrupt.

        So does a signal that came before, or whose exception a library has suppressed.
        """
        unraisable_before = sys.unraisablehook
        sys.unraisablehook = self._ignore_interrupt
        self._is_interrupting = True
        try:
            self._raise_if_made()
            yield
            self._raise_if_made()
            self._is_setting_up = False
        finally:
            self._is_interrupting = False
            sys.unraisablehook = unraisable_before

    def _ignore_interrupt(self, unraisable: Any) -> None:
        """Print no traceback of a KeyboardInterrupt that a library has suppressed."""
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):
            sys.__unraisablehook__(unraisable)

    def _raise_if_made(self) -> None:
        if self._is_made:
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal, in the main thread."""
        self._is_made = True
        if self._is_interrupting:
            raise KeyboardInterrupt

    def _watch_signals(self) -> None:
        """Announce the first signal; at a second SIGINT exit. Runs in a thread."""
        is_first = True
        while number := os.read(self._reader, 1):
            if is_first and number[0] in _SIGNALS:
                is_first = False
                self._announce(signal.Signals(number[0]))
            elif number[0] == signal.SIGINT:
                os._exit(128 + signal.SIGINT)

    def _announce(self, number: signal.Signals) -> None:
        # A progress bar hides the cursor; a second Ctrl-C leaves no time to show it.
        # While there is a bar, rich replaces the streams, and drops what is no text.
        for stream in (sys.__stdout__, sys.__stderr__):
            if stream is not None and stream.isatty():
                stream.write(_SHOW_CURSOR)
                stream.flush()
        if not self._is_setting_up:
            print(
                f"\n{number.name}: finishing the step and saving; "
                "press Ctrl-C again to stop without saving",
                file=sys.stderr,
                flush=True,
            )
