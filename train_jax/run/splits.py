"""Load the training, validation and test split; warn where they overlap."""

import functools
import itertools
import math
import sys
from collections.abc import Mapping

import jax
import numpy as np

from train_jax import data
from train_jax.config.fields import DatasetConfig
from train_jax.data import ImageSplit, Split
from train_jax.devices import processes
from train_jax.devices.memory import room_for_data

SPLIT_FIELDS = ("train_split", "val_split", "test_split")


def load_dataset(
    dataset: DatasetConfig, *, crops: bool = False, room: float | None = None
) -> tuple[Split, Split | None, Split]:
    """Load the three splits of a dataset; None for validation if there is none.

    Args:
        dataset: names them.
        crops: whether training images are to be cropped before they are resized.
        room: how many bytes of images fit into memory; measured if not given.

    Raises:
        ValueError: see `data.load_splits`.
    """
    cuts = {name: getattr(dataset, name) for name in SPLIT_FIELDS}
    given = {name: cut for name, cut in cuts.items() if cut is not None}
    wholes = [data.split_name(cut) for cut in given.values()]
    loaded = load_named_splits(
        dataset, *given.values(), *wholes, crops=crops, room=room
    )
    splits = dict(zip(given, loaded, strict=False))
    _check_images(given, splits)
    if not dataset.allow_overlap and processes.is_main():
        sizes = dict(zip(wholes, map(len, loaded[len(given) :]), strict=True))
        _warn_of_overlap(given, sizes)
    return splits["train_split"], splits.get("val_split"), splits["test_split"]


def _check_images(cuts: Mapping[str, str], splits: Mapping[str, Split]) -> None:
    """Raise ValueError for images unlike the training's, or without labels."""
    train = splits["train_split"]
    for name, split in splits.items():
        if not isinstance(split, ImageSplit) or not isinstance(train, ImageSplit):
            continue
        expected, got = train.image_BHWC.shape[1:], split.image_BHWC.shape[1:]
        if got != expected:
            raise ValueError(
                "config.dataset.image_size must be given, as images have different "
                f"shapes: {cuts['train_split']!r} {expected}, {cuts[name]!r} {got}"
            )
        np.asarray(split.label_B[:1])  # a streamed one raises if it has no labels


def load_named_splits(
    dataset: DatasetConfig,
    *splits: str,
    crops: bool = False,
    room: float | None = None,
) -> list[Split]:
    """Load splits; in several processes, the first one prepares a missing set.

    Args:
        dataset: names the set.
        *splits: see `data.load`.
        crops: see `load_dataset`.
        room: likewise.
    """
    if data.is_in_memory(dataset.name) and dataset.streaming is True:
        raise ValueError(
            "config.dataset.streaming must be 'auto' or False for dataset "
            f"{dataset.name!r}, which is made in memory, got True"
        )
    if dataset.streaming != "auto":
        room = 0.0 if dataset.streaming else math.inf
    elif crops:
        room = 0.0
    elif room is None:
        room = room_for_data()  # of the process with least: all of them have to ask
    load_all = functools.partial(
        data.load_splits,
        dataset.name,
        *splits,
        data_dir=dataset.data_dir,
        manual_dir=dataset.manual_dir,
        image_size=dataset.image_size,
        resize=dataset.resize,
        split_seed=dataset.split_seed,
        room=room,
    )
    if jax.process_count() > 1:
        processes.call_on_main(load_all)
    return load_all()


def _warn_of_overlap(cuts: Mapping[str, str], size_of: Mapping[str, int]) -> None:
    """Print a warning for each pair of splits that share examples."""
    for (name_a, a), (name_b, b) in itertools.combinations(cuts.items(), 2):
        shared = data.count_shared(a, b, size_of)
        if shared:
            print(
                f"warning: config.dataset.{name_a} {a!r} and config.dataset.{name_b} "
                f"{b!r} share {shared:,} examples; if that is meant, say so by "
                "config.dataset.allow_overlap=True",
                file=sys.stderr,
            )
