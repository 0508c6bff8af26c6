"""Tables between this project's parameters and those of another library.

A table is a list of entries. Each says which parameters, by their paths, an array of
the other library holds, and how its axes are arranged there. Entries only rename,
split, join and transpose, so that they convert gradients as well.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import flax.traverse_util
import numpy as np

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Entry:
    """One array of another library.

    Attributes:
        ours: paths of parameters, "params/head/kernel".
        theirs: name of the array.
        read: turns it into those parameters.
        write: turns those parameters into it.
    """

    ours: tuple[str, ...]
    theirs: str
    read: Callable[[Array], Sequence[Array]]
    write: Callable[..., Array]


def renamed(ours: str, theirs: str) -> Entry:
    """Match an array that only has another name."""
    return Entry((ours,), theirs, lambda array: [array], lambda array: array)


def dense(ours: str, theirs: str, *, bias: bool = True) -> list[Entry]:
    """Match a dense layer with `torch.nn.Linear`, (D, F) with (F, D)."""
    kernel = (f"{ours}/kernel",)
    return [
        Entry(kernel, f"{theirs}.weight", lambda w: [w.T], lambda k: k.T),
        *([renamed(f"{ours}/bias", f"{theirs}.bias")] if bias else []),
    ]


def norm(ours: str, theirs: str) -> list[Entry]:
    """Match a LayerNorm or a BatchNorm's scale and bias with PyTorch's."""
    return [
        renamed(f"{ours}/scale", f"{theirs}.weight"),
        renamed(f"{ours}/bias", f"{theirs}.bias"),
    ]


def fused(ours: Sequence[str], weight: str, bias: str | None) -> list[Entry]:
    """Match dense layers, such as query, key and value, with one weight and bias."""
    count = len(ours)
    kernels = Entry(
        tuple(f"{path}/kernel" for path in ours),
        weight,
        lambda w: [part.T for part in np.split(w, count)],
        lambda *kernels: np.concatenate([kernel.T for kernel in kernels]),
    )
    if bias is None:
        return [kernels]
    biases = Entry(
        tuple(f"{path}/bias" for path in ours),
        bias,
        lambda b: np.split(b, count),
        lambda *biases: np.concatenate(biases),
    )
    return [kernels, biases]


def convolution(ours: str, theirs: str) -> Entry:
    """Match a kernel (height, width, C, F) with PyTorch's (F, C, height, width)."""
    return Entry(
        (f"{ours}/kernel",),
        f"{theirs}.weight",
        lambda w: [w.transpose(2, 3, 1, 0)],
        lambda k: k.transpose(3, 2, 0, 1),
    )


def to_ours(table: Iterable[Entry], arrays: Mapping[str, Array]) -> dict[str, Any]:
    """Turn another library's arrays into variables.

    Args:
        table: an entry for each array.
        arrays: name → array.

    Raises:
        ValueError: naming the first three, if arrays are missing, left over, or can't
            be split as they should.
    """
    table = list(table)
    known = {entry.theirs for entry in table}
    for names, fault in (
        (known - set(arrays), "lack"),
        (set(arrays) - known, "have, but should not,"),
    ):
        if names:
            raise ValueError(f"they {fault} {first_three(names)}")
    flat: dict[str, Array] = {}
    for entry in table:
        try:
            parts = entry.read(arrays[entry.theirs])
        except ValueError as error:
            shape = arrays[entry.theirs].shape
            raise ValueError(
                f"their {entry.theirs!r} has the shape {shape}, which doesn't fit"
            ) from error
        flat |= dict(zip(entry.ours, map(np.ascontiguousarray, parts), strict=True))
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def to_theirs(table: Iterable[Entry], variables: Mapping[str, Any]) -> dict[str, Array]:
    """Turn variables into another library's arrays.

    Raises:
        ValueError: naming the first three, if variables are missing or left over.
    """
    table = list(table)
    flat: Any = flax.traverse_util.flatten_dict(dict(variables), sep="/")
    known = {path for entry in table for path in entry.ours}
    for names, fault in (
        (known - set(flat), "needs"),
        (set(flat) - known, "has no place for"),
    ):
        if names:
            raise ValueError(f"the format {fault} {first_three(names)}")
    return {
        entry.theirs: np.ascontiguousarray(
            entry.write(*(np.asarray(flat[path]) for path in entry.ours))
        )
        for entry in table
    }


def first_three(names: Iterable[str]) -> str:
    """Name the first three, and count the others."""
    ordered = sorted(names)
    shown = ", ".join(map(repr, ordered[:3]))
    others = len(ordered) - 3
    return f"{shown} and {others} more" if others > 0 else shown
