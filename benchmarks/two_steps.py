"""Train for two steps: python -m benchmarks.two_steps ours|eager|compiled CASE."""

import sys

from benchmarks.cases import CASES, SMALL


def main(side: str, name: str) -> None:
    """Set up, compile, and take two steps."""
    case = (CASES | SMALL)[name]._replace(num_steps=2)
    if side == "ours":
        from benchmarks import ours

        take_steps = ours.make_program(case, case.num_steps)
    else:
        from benchmarks import peers

        take_steps = peers.make_steps(
            case,
            is_compiled=side == "compiled",
            channels_last=case.is_convolutional,
        )
    take_steps()


if __name__ == "__main__":
    main(*sys.argv[1:])
