"""Time programs in turns: a machine that slows down slows all of them."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

# Threads of the program before may go on spinning for a while.
_REST_SECONDS = 0.5


@dataclasses.dataclass(frozen=True)
class Timing:
    """How long one program took.

    Attributes:
        case: what was computed.
        program: what computed it.
        seconds: every measurement, of one unit of work.
        images: number of images in a unit.
        peak_bytes: the most memory that each measurement took, where that was
            measured: for programs in a process of their own.
        peak_share: operations a second, as a share of the device's peak, where known.
    """

    case: str
    program: str
    seconds: list[float]
    images: int
    peak_bytes: list[int] | None = None
    peak_share: float | None = None

    @property
    def median(self) -> float:
        """The median, seconds."""
        return statistics.median(self.seconds)

    @property
    def images_per_second(self) -> float:
        """Images per second, of the median."""
        return self.images / self.median

    @property
    def peak_gib(self) -> float | None:
        """The most memory of all measurements, GiB."""
        return None if self.peak_bytes is None else max(self.peak_bytes) / 2**30

    def to_json(self) -> dict[str, Any]:
        """All of it, and what follows from it, as values that JSON knows."""
        low = high = self.median
        if len(self.seconds) > 1:
            low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return dataclasses.asdict(self) | {
            "median": self.median,
            "quartiles": [low, high],
            "images_per_second": self.images_per_second,
        }


def take_turns(
    case: str,
    programs: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    images: int,
    units: int = 1,
) -> list[Timing]:
    """Run each program once a round, and time it.

    It runs twice, and the second time counts: what it needs is warm, and the memory
    that it freed a turn ago has not gone to the others. In training, too, step follows
    on step.

    Args:
        case: what they compute.
        programs: by name; each does `units` units of work and waits for its end.
        rounds: number of rounds.
        images: number of images in a unit.
        units: number of units that a call does.
    """
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            time.sleep(_REST_SECONDS)
            program()
            started = time.perf_counter()
            program()
            seconds[name].append((time.perf_counter() - started) / units)
    return [Timing(case, name, values, images) for name, values in seconds.items()]
