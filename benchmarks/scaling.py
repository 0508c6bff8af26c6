"""How does the time of a training step grow: with batch, tokens, width, depth?"""

from collections.abc import Iterator

from benchmarks.cases import VIT_MNIST, Case
from benchmarks.timing import Timing, take_turns
from benchmarks.train_step import make_programs

_AXES = {
    "batch": (32, 128, 512),
    "tokens": (5, 17, 50, 197),
    "width": (64, 128, 256, 512),
    "depth": (1, 3, 6, 12),
}
_PATCH_SIZE = {5: 14, 17: 7, 50: 4, 197: 2}  # of 28 pixels, and the class token


def measure(*, small: bool, rounds: int) -> Iterator[Timing]:
    """Time a step of the MNIST ViT with one thing changed at a time."""
    axes = {"batch": (32,)} if small else _AXES
    for axis, values in axes.items():
        for value in values:
            case = _make_case(axis, value, small=small)
            yield from take_turns(
                f"{axis} {value}",
                make_programs(case, "float32", {"eager": {}}),
                rounds=rounds,
                images=case.batch_size,
                units=case.num_steps,
            )


def _make_case(axis: str, value: int, *, small: bool) -> Case:
    """Change one thing of the MNIST ViT with batch 128."""
    fields, batch_size = dict(VIT_MNIST), 8 if small else 128
    if small:
        fields |= {"model.width": 16, "model.depth": 1}
    if axis == "batch":
        batch_size = value
    elif axis == "tokens":
        fields["model.patch_size"] = _PATCH_SIZE[value]
    else:
        fields[f"model.{axis}"] = value
    return Case(fields, (28, 28, 1), 10, batch_size, 4)
