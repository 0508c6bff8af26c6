"""How long does a training step take on 1, 2, 4, 8 devices?"""

from collections.abc import Iterator

import jax

from benchmarks import ours
from benchmarks.cases import cases
from benchmarks.timing import Timing, take_turns


def measure(*, small: bool, rounds: int) -> Iterator[Timing]:
    """Time a step of the MNIST ViT with the same batch, shared by more devices."""
    case = next(iter(cases(small=small).values()))
    counts = (1, 2) if small else (1, 2, 4, 8)
    programs = {
        f"{n} device{'s' if n > 1 else ''}": ours.make_program(
            case, case.num_steps, devices=jax.devices()[:n]
        )
        for n in counts
        if n <= jax.device_count()
    }
    yield from take_turns(
        f"batch {case.batch_size} over all devices",
        programs,
        rounds=rounds,
        images=case.batch_size,
        units=case.num_steps,
    )
