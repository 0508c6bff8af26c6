"""Load the training, validation and test split; warn where they overlap."""

import functools
import itertools
import sys

import jax

from train_jax import data
from train_jax.config.fields import DatasetConfig
from train_jax.data import ImageSplit, SequenceSplit
from train_jax.devices import processes

FIELDS = ("train_split", "val_split", "test_split")


def load_splits(dataset: DatasetConfig) -> list[ImageSplit | SequenceSplit]:
    """Load the three splits of a dataset.

    Raises:
        ValueError: see `data.load_splits`.
    """
    cuts = [getattr(dataset, name) for name in FIELDS]
    wholes = [data.parse_split(cut)[0] for cut in cuts]
    *splits, train, val, test = load(dataset, *cuts, *wholes)
    if not dataset.allow_overlap and processes.is_main():
        sizes = dict(zip(wholes, map(len, (train, val, test)), strict=True))
        _warn_of_overlap(cuts, sizes)
    return splits


def load(dataset: DatasetConfig, *splits: str) -> list[ImageSplit | SequenceSplit]:
    """Load splits; in several processes, the first one prepares a missing set."""
    load_all = functools.partial(
        data.load_splits,
        dataset.name,
        *splits,
        data_dir=dataset.data_dir,
        manual_dir=dataset.manual_dir,
    )
    if jax.process_count() > 1:
        processes.call_on_main(load_all)
    return load_all()


def _warn_of_overlap(cuts: list[str], sizes: dict[str, int]) -> None:
    """Print a warning for each pair of splits that share examples."""
    for a, b in itertools.combinations(range(len(FIELDS)), 2):
        shared = data.count_shared(cuts[a], cuts[b], sizes)
        if shared:
            print(
                f"warning: config.dataset.{FIELDS[a]} {cuts[a]!r} and "
                f"config.dataset.{FIELDS[b]} {cuts[b]!r} share {shared:,} examples; "
                "if that is meant, say so by config.dataset.allow_overlap=True",
                file=sys.stderr,
            )
