"""How long do K runs take together, and one after another?"""

import functools
from collections.abc import Iterator

from benchmarks import ours
from benchmarks.cases import cases
from benchmarks.timing import Timing, take_turns


def measure(*, small: bool, rounds: int) -> Iterator[Timing]:
    """Time a step of K ViTs in one program, and K steps of a single one."""
    case = next(iter(cases(small=small).values()))
    num_steps = 4
    programs = {
        num_runs: ours.make_program(case, num_steps, num_seeds=num_runs)
        for num_runs in ((1, 2) if small else (1, 2, 4, 8))
    }

    def one_after_another(num_runs: int) -> None:
        for _ in range(num_runs):
            programs[1]()

    for num_runs, together in programs.items():
        alone = functools.partial(one_after_another, num_runs)
        yield from take_turns(
            f"K = {num_runs}, batch {case.batch_size} each",
            {"together": together, "one after another": alone},
            rounds=rounds,
            images=case.batch_size * num_runs,
            units=num_steps,
        )
