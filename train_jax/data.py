"""Image-classification splits as numpy arrays: any TFDS set, or the bundled digits.

`load("mnist", "train[:90%]")` is all that the rest of the code needs to know. Importing
this module is cheap: TFDS, TensorFlow, OpenCV and scikit-learn are imported by the
functions that use them, and a set that was read once is later read from the cache
without any of them.
"""

import contextlib
import dataclasses
import difflib
import hashlib
import io
import json
import logging
import os
import pathlib
import re
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

_NUMBER = r"-?\d+(?:_\d+)*"
_BOUND = rf"{_NUMBER}(?:(?:\.\d+)?%)?"
_SPLIT = re.compile(rf"([\w-]+)(?:\[({_BOUND})?:({_BOUND})?\])?")
_NAME = re.compile(r"(\w+)(?:/([\w.-]+))?(?::(\d+\.\d+\.\d+))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")

# Part of every cache key: increase it when the cached content changes its meaning.
_CACHE_FORMAT = 1
# Large enough to amortise a call, small enough to keep few encoded images in memory.
_RECORDS_PER_READ = 4096


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """One split of a dataset, in memory.

    Attributes:
        image_BHWC: uint8 images, 0 to 255.
        label_B: int32 labels, 0 to `num_classes` - 1.
        num_classes: Number of classes Y.
        class_names: Y names, in the order of the labels.
    """

    image_BHWC: np.ndarray
    label_B: np.ndarray
    num_classes: int
    class_names: tuple[str, ...]


def load(
    name: str, split: str, *, data_dir: str | None = None, manual_dir: str | None = None
) -> Split:
    """Load a split of a dataset, or a slice of it.

    A TFDS set that is not prepared yet is prepared first, which needs TensorFlow and
    either internet or the original archives in `manual_dir`.

    Args:
        name: `"digits"`, or the name of a TFDS image-classification set:
            `"dataset"`, `"dataset/config"`, either with `":1.2.3"` for a version.
        split: A split or one slice of it, in the syntax and with the rounding of TFDS:
            `"train"`, `"train[:90%]"`, `"train[-5000:]"`.
        data_dir: Folder of prepared TFDS sets. Defaults to the environment variable
            `TFDS_DATA_DIR`, else `~/tensorflow_datasets`.
        manual_dir: Folder with the dataset's original archives.

    Returns:
        The split; images of the same size, in the order of the prepared files.

    Raises:
        ValueError: If the arguments are wrong, or the data are missing or damaged.
    """
    base, start, stop = _parse_split(split)
    if name == "digits":
        data = _load_digits(base)
    else:
        data = _load_tfds(name, base, data_dir=data_dir, manual_dir=manual_dir)
    cut = _absolute_slice(split, start, stop, len(data.label_B))
    return dataclasses.replace(data, image_BHWC=data.image_BHWC[cut], label_B=data.label_B[cut])


def _parse_split(split: str) -> tuple[str, str | None, str | None]:
    """Take `"train[10%:20%]"` apart into `("train", "10%", "20%")`."""
    match = _SPLIT.fullmatch(split)
    if match is None or (split.endswith("]") and match[2] is None and match[3] is None):
        raise ValueError(
            f"split {split!r} is not understood; allowed: a split name such as 'train', or one "
            "slice of it: 'train[:90%]', 'train[55000:]', 'train[10%:20%]'"
        )
    base, start, stop = match.groups()
    if start and stop and start.endswith("%") != stop.endswith("%"):
        raise ValueError(f"split {split!r} mixes percent and absolute; allowed: one of the two")
    return base, start, stop


def _absolute_slice(split: str, start: str | None, stop: str | None, size: int) -> slice:
    """Turn the bounds of a slice into indices of a split of `size` examples."""

    def index(bound: str) -> int:
        if bound.endswith("%"):
            return round(float(bound[:-1]) * size / 100.0)
        return int(bound)

    first = 0 if start is None else index(start)
    last = size if stop is None else index(stop)
    if max(abs(first), abs(last)) > size:
        raise ValueError(f"split {split!r} reaches beyond the {size} examples that there are")
    cut = slice(first, last)
    if not range(size)[cut]:
        raise ValueError(f"split {split!r} is empty: it selects none of {size} examples")
    return cut


def _check_split_name(base: str, known: Iterable[str], name: str) -> None:
    if base not in known:
        raise ValueError(f"dataset {name!r} has no split {base!r}; it has: {', '.join(known)}")


def _load_digits(base: str) -> Split:
    """Load scikit-learn's 8x8 digits, cut into train and test once and for all."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    _check_split_name(base, ("train", "test"), "digits")
    image_BHW, label_B = load_digits(return_X_y=False).images, load_digits().target  # type: ignore
    image_BHWC = np.rint(image_BHW * (255 / 16)).astype(np.uint8)[..., None]
    train, test = train_test_split(
        np.arange(len(label_B)), test_size=360, stratify=label_B, random_state=0
    )
    index_B = train if base == "train" else test
    names = tuple(str(digit) for digit in range(10))
    return Split(image_BHWC[index_B], label_B[index_B].astype(np.int32), 10, names)


def _load_tfds(name: str, base: str, *, data_dir: str | None, manual_dir: str | None) -> Split:
    """Load a whole base split: from the cache, else from the prepared set."""
    root = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    if "://" in root:
        raise ValueError(f"data_dir {root!r} is not a local folder; copy the prepared set here")
    root = pathlib.Path(root).expanduser()
    manual = pathlib.Path(manual_dir).expanduser() if manual_dir else None
    if manual is not None and not manual.is_dir():
        raise ValueError(f"manual_dir {str(manual)!r} is not a folder; expected the archives there")
    folder = _find_prepared(name, root) or _prepare(name, root, manual)
    cache = _cache_path(folder, base)
    data = _read_cache(cache)
    if data is None:
        data = _read_prepared(folder, base)
        _write_cache(cache, data)
    return data


def _find_prepared(name: str, root: pathlib.Path) -> pathlib.Path | None:
    """Find the newest prepared version of a set, without the cost of importing TFDS."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(
            f"dataset {name!r} is not a name; allowed: 'digits', or a TFDS image-classification "
            "set as 'dataset', 'dataset/config' or 'dataset:1.2.3'"
        )
    dataset, config, wanted = match.groups()
    folder = root / dataset
    config = config or _default_config(folder)
    if config:
        folder = folder / config
    found = [
        path.parent
        for path in folder.glob(f"{wanted or '*'}/dataset_info.json")
        if _VERSION.fullmatch(path.parent.name)
    ]
    return max(found, key=lambda path: tuple(map(int, path.name.split("."))), default=None)


def _default_config(folder: pathlib.Path) -> str | None:
    """Read which config TFDS noted as the default one, if the set has configs."""
    try:
        metadata = json.loads((folder / ".config" / "metadata.json").read_text())
    except (OSError, ValueError):
        return None
    return metadata.get("default_config_name")
