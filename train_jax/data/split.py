"""Splits as arrays in memory; parse the syntax of slices, "train[:90%]"."""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

_NUMBER = r"-?\d+(?:_\d+)*"
_BOUND = rf"{_NUMBER}(?:(?:\.\d+)?%)?"
_SPLIT = re.compile(rf"([\w-]+)(?:\[({_BOUND})?:({_BOUND})?\])?")


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSplit:
    """One split of an image-classification set, in memory or streamed.

    Attributes:
        image_BHWC: uint8 images, 0 to 255; `StreamedImages` if the split is streamed.
        label_B: int32 labels, 0 to `num_classes` - 1; likewise.
        class_names: a name for each class, in the order of the labels.
        files_checksum: of a folder's whole split, a checksum of its pictures' names
            in their order; None for a set that does not change.
    """

    image_BHWC: np.ndarray
    label_B: np.ndarray
    class_names: tuple[str, ...]
    files_checksum: int | None = None

    def __len__(self) -> int:
        return len(self.label_B)

    def __getitem__(self, cut: slice) -> "ImageSplit":
        return dataclasses.replace(
            self, image_BHWC=self.image_BHWC[cut], label_B=self.label_B[cut]
        )

    @property
    def is_streamed(self) -> bool:
        """Whether images are decoded when they are asked for."""
        return not isinstance(self.image_BHWC, np.ndarray)

    @property
    def num_classes(self) -> int:
        """Number of classes Y."""
        return len(self.class_names)

    @property
    def examples(self) -> tuple[np.ndarray, ...]:
        """The arrays whose leading axis is the example."""
        return self.image_BHWC, self.label_B


@dataclasses.dataclass(frozen=True, eq=False)
class SequenceSplit:
    """One split of a set of source and target sequences, in memory.

    Attributes:
        source_BS: int32 tokens, 0 to `num_symbols` - 1.
        target_BT: int32 tokens, 0 to `num_symbols` - 1.
        num_symbols: number of different tokens.
        is_streamed: sequences are in memory.
        files_checksum: see `ImageSplit`.
    """

    is_streamed: ClassVar[bool] = False
    files_checksum: ClassVar[None] = None
    source_BS: np.ndarray
    target_BT: np.ndarray
    num_symbols: int

    def __len__(self) -> int:
        return len(self.source_BS)

    def __getitem__(self, cut: slice) -> "SequenceSplit":
        return dataclasses.replace(
            self, source_BS=self.source_BS[cut], target_BT=self.target_BT[cut]
        )

    @property
    def examples(self) -> tuple[np.ndarray, ...]:
        """The arrays whose leading axis is the example."""
        return self.source_BS, self.target_BT


Split = ImageSplit | SequenceSplit


def split_name(cut: str) -> str:
    """Return the name of the whole split: "train" of "train[:90%]".

    Raises:
        ValueError: if the syntax is wrong.
    """
    return _parse_split(cut)[0]


def _parse_split(split: str) -> tuple[str, str | None, str | None]:
    """Parse `"train[10%:20%]"` into `("train", "10%", "20%")`."""
    match = _SPLIT.fullmatch(split)
    if match is None or (split.endswith("]") and match[2] is None and match[3] is None):
        raise ValueError(
            f"split {split!r} is not understood; allowed: a name such as 'train', or "
            "one slice of it: 'train[:90%]', 'train[55000:]', 'train[10%:20%]'"
        )
    base, start, stop = match.groups()
    if start and stop and start.endswith("%") != stop.endswith("%"):
        raise ValueError(
            f"split {split!r} mixes percent and absolute; allowed: one of the two"
        )
    return base, start, stop


def absolute_slice(split: str, size: int) -> slice:
    """Compute the indices of `"train[10%:20%]"` for a split of `size` examples.

    Raises:
        ValueError: if it is empty or longer than the split.
    """
    _, start, stop = _parse_split(split)

    def index(bound: str) -> int:
        if bound.endswith("%"):
            return round(float(bound[:-1]) * size / 100.0)
        return int(bound)

    first = 0 if start is None else index(start)
    last = size if stop is None else index(stop)
    if max(abs(first), abs(last)) > size:
        raise ValueError(
            f"split {split!r} reaches beyond the {size} examples that there are"
        )
    cut = slice(first, last)
    if not range(size)[cut]:
        raise ValueError(
            f"split {split!r} is empty: it selects none of {size} examples"
        )
    return cut


def count_shared(split_a: str, split_b: str, size_of: Mapping[str, int]) -> int:
    """Count the examples that two splits have in common.

    Args:
        split_a: a split or a slice of one.
        split_b: likewise.
        size_of: name of each whole split, `"train"` → its number of examples.

    Raises:
        ValueError: if a split is not understood, is empty, or is longer than the whole.
    """
    cuts = []
    for split in (split_a, split_b):
        base = split_name(split)
        size = size_of[base]
        cuts.append((base, range(size)[absolute_slice(split, size)]))
    (base_a, a), (base_b, b) = cuts
    return max(0, min(a.stop, b.stop) - max(a.start, b.start)) * (base_a == base_b)


def check_split_name(base: str, known: Iterable[str], name: str) -> None:
    """Raise ValueError unless the dataset `name` has the split `base`."""
    if base not in known:
        raise ValueError(
            f"dataset {name!r} has no split {base!r}; it has: "
            f"{', '.join(known) or 'none'}"
        )


def first_change(before: Sequence[Any], now: Sequence[Any]) -> str | None:
    """Say where two lists first differ: "'cat', now 'kitten'"; None if nowhere."""
    for old, new in itertools.zip_longest(before, now):
        if old != new:
            return f"{old!r}, now {new!r}"
    return None
