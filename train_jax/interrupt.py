"""SIGTERM and SIGINT as a wish to stop, to be granted when it does no harm."""

import signal
import sys
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Whether somebody has asked the program to stop; a context that listens for it.

    A second SIGINT is not listened for any more: it ends the program at once.
    """

    def __init__(self) -> None:
        self._is_made = False

    def __call__(self) -> bool:
        """Whether to stop."""
        return self._is_made

    def __enter__(self) -> "StopRequest":
        self._before = {s: signal.signal(s, self._note) for s in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        """Remember the signal; from now on SIGINT does what it does by default."""
        self._is_made = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        print(
            f"\n{signal.Signals(number).name}: finishing the step and saving; "
            "interrupt again (Ctrl-C) to stop without",
            file=sys.stderr,
            flush=True,
        )
