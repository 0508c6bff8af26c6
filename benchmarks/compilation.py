"""How long does it take to be ready to train, and how much memory does training?"""

from collections.abc import Iterator

from benchmarks import commands
from benchmarks.cases import cases
from benchmarks.timing import Timing


def measure(*, small: bool, rounds: int) -> Iterator[Timing]:
    """Time programs that import, set a model up, compile it, and take two steps."""
    for name, case in cases(small=small).items():
        layout = ", channels last" if case.is_convolutional else ""
        programs = {"ours": "ours", f"PyTorch eager{layout}": "eager"}
        if not small:
            programs[f"PyTorch compiled{layout}"] = "compiled"
        yield from commands.take_turns(
            f"{name}, batch {case.batch_size}: import, compile, two steps",
            {
                program: (("-m", "benchmarks.two_steps", side, name), None)
                for program, side in programs.items()
            },
            rounds=1 if small else min(rounds, 3),
            images=2 * case.batch_size,
        )
