"""How long does a training step take on 1, 2, 4, 8 devices?"""

from collections.abc import Iterator

import jax

from benchmarks import ours
from benchmarks.cases import cases
from benchmarks.timing import Timing, take_turns


def measure(*, small: bool, rounds: int) -> Iterator[Timing]:
    """Time a step of the MNIST ViT with the same batch, shared by more devices."""
    case = next(iter(cases(small=small).values()))
    counts = [n for n in (1, 2, 4, 8) if n <= jax.device_count()]
    programs = {}
    for num_devices in counts:
        devices = jax.devices()[:num_devices]
        experiment = ours.make_experiment(case, devices=devices)
        name = f"{num_devices} device{'s' if num_devices > 1 else ''}"
        programs[name] = ours.make_steps(experiment, case.num_steps)
    yield from take_turns(
        f"batch {case.batch_size} over all devices",
        programs,
        rounds=rounds,
        images=case.batch_size,
        units=case.num_steps,
    )
