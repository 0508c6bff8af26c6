"""Load datasets as numpy arrays: TFDS image sets, folders, digits, sequences.

`load("mnist", "train[:90%]")` prepares, reads and caches. Importing this package is
cheap: TFDS, TensorFlow, OpenCV and scikit-learn are imported by the functions that use
them, and a set in the cache is read without any of them.
"""

import concurrent.futures
import dataclasses
import math
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from train_jax.data import cache, tfds_fetch, tfds_prepare, tfds_read, tfds_stream
from train_jax.data.digits import load_digits
from train_jax.data.folder import PREFIX, load_folder
from train_jax.data.names import canonical_name as canonical_name
from train_jax.data.resize import Resize, resize_image
from train_jax.data.reverse import load_reverse
from train_jax.data.split import ImageSplit as ImageSplit
from train_jax.data.split import SequenceSplit as SequenceSplit
from train_jax.data.split import Split as Split
from train_jax.data.split import absolute_slice
from train_jax.data.split import count_shared as count_shared
from train_jax.data.split import split_name as split_name
from train_jax.storage.paths import local_path
from train_jax.storage.store import Path, any_path

# Sets that are made in memory, not read from files: name → what makes a split.
_MAKERS: dict[str, Callable[[str], Split]] = {
    "digits": load_digits,
    "reverse": load_reverse,
}


def load(
    name: str,
    split: str,
    *,
    data_dir: str | None = None,
    manual_dir: str | None = None,
    image_size: int | None = None,
    resize: Resize = "crop",
) -> Split:
    """Load a split of a dataset, or a slice of it.

    A TFDS set is prepared first if need be, with TensorFlow, and from the internet or
    the original archives in `manual_dir`.

    Args:
        name: `"digits"`, `"reverse"`, `"folder:PATH"`, see `load_folder`, or the name
            of a TFDS image-classification set: `"dataset"`, `"dataset/config"`, either
            with `":1.2.3"` for a version.
        split: a split or one slice of it, in the syntax and with the rounding of TFDS:
            `"train"`, `"train[:90%]"`, `"train[-5000:]"`.
        data_dir: folder of prepared TFDS sets; defaults to the environment variable
            `TFDS_DATA_DIR`, else `~/tensorflow_datasets`.
        manual_dir: folder with the dataset's original archives.
        image_size: side to which images are resized, pixels; None for images as they
            are, which must then have the same size.
        resize: how images of other proportions are brought to a square; see
            `resize_image`.

    Returns:
        The split; images of the same size, in the order of the prepared files.

    Raises:
        ValueError: if the arguments are wrong, or the data are missing or damaged.
    """
    return load_splits(
        name,
        split,
        data_dir=data_dir,
        manual_dir=manual_dir,
        image_size=image_size,
        resize=resize,
    )[0]


def load_splits(
    name: str,
    *splits: str,
    data_dir: str | None = None,
    manual_dir: str | None = None,
    image_size: int | None = None,
    resize: Resize = "crop",
    split_seed: int = 0,
    room: float = math.inf,
) -> list[Split]:
    """Load several splits; slices of the same one are views of the same arrays.

    Args:
        name: see `load`.
        *splits: see `load`.
        data_dir: see `load`.
        manual_dir: see `load`.
        image_size: side to which images are brought, pixels; None to leave them.
        resize: how, see `resize_image`.
        split_seed: of the order of a folder's pictures, see `load_folder`.
        room: bytes that all images may take when they are decoded; larger sets are
            streamed, and so are images of many sizes: decoded when they are asked for.

    Raises:
        ValueError: see `load`.
    """
    name = canonical_name(name)
    bases = [split_name(split) for split in splits]
    names = dict.fromkeys(bases)
    if is_folder(name):
        root = local_path(name.removeprefix(PREFIX), "config.dataset.name")
        how: Any = {"image_size": image_size, "resize": resize}
        how |= {"split_seed": split_seed, "room": room}
        loaded = load_folder(root, *names, **how)
    elif is_in_memory(name):
        loaded = [_resize(_MAKERS[name](it), image_size, resize) for it in names]
    else:
        folder = find_or_prepare(name, data_dir, manual_dir)
        how = {"image_size": image_size, "resize": resize}
        if _exceeds(room, folder, names, image_size):
            loaded = [tfds_stream.stream_prepared(folder, it, **how) for it in names]
        else:
            loaded = [_resize(_read_whole(folder, it), **how) for it in names]
    whole = dict(zip(names, loaded, strict=True))
    return [
        whole[base][absolute_slice(split, len(whole[base]))]
        for base, split in zip(bases, splits, strict=True)
    ]


def _resize(split: Split, image_size: int | None, resize: Resize) -> Split:
    """Bring the images of a split to a size, if one is given.

    Raises:
        ValueError: for a set of sequences.
    """
    if image_size is None:
        return split
    if not isinstance(split, ImageSplit):
        raise ValueError(
            "config.dataset.image_size must be None for a set without images, got "
            f"{image_size}"
        )
    count, *old_size, channels = split.image_BHWC.shape
    size = (image_size, image_size)
    if tuple(old_size) == size:
        return split
    resized = np.empty((count, *size, channels), np.uint8)

    def resize_one(index: int) -> None:
        image_HWC = split.image_BHWC[index]
        resized[index] = resize_image(image_HWC, size, how=resize, background=0)

    with concurrent.futures.ThreadPoolExecutor() as threads:
        list(threads.map(resize_one, range(count)))
    return dataclasses.replace(split, image_BHWC=resized)


def _exceeds(
    room: float, folder: pathlib.Path, bases: Iterable[str], image_size: int | None
) -> bool:
    """Whether the images of splits of a prepared set need more than `room` bytes."""
    if room in (0, math.inf):
        return room == 0
    sizes = []
    for base in bases:
        cached = _cache_path(folder, base)
        if image_size is None and cached.exists():
            sizes.append(cached.stat().st_size)  # that of the images
        else:
            sizes.append(tfds_stream.decoded_size(folder, base, image_size))
    return sum(sizes) > room


def is_in_memory(name: str) -> bool:
    """Whether a dataset is made in memory, not read from files."""
    return name in _MAKERS


def is_sequences(name: str) -> bool:
    """Whether a dataset consists of sequences instead of images."""
    return name == "reverse"


def is_folder(name: str) -> bool:
    """Whether a dataset is a folder of pictures."""
    return name.startswith(PREFIX)


def is_same_set(name: str, other: str) -> bool:
    """Whether two names are of one dataset; a folder's path is resolved."""
    if not (is_folder(name) and is_folder(other)):
        return canonical_name(name) == canonical_name(other)
    folders = (
        local_path(each.removeprefix(PREFIX), "config.dataset.name").resolve()
        for each in (name, other)
    )
    return next(folders) == next(folders)


def _read_whole(folder: pathlib.Path, base: str) -> ImageSplit:
    """Read a split of a prepared set, from the cache if it is there."""
    cached = _cache_path(folder, base)
    data = cache.read_cache(cached)
    if data is None:
        data = tfds_read.read_prepared(folder, base)
        cache.write_cache(cached, data)
    return data


def find_or_prepare(
    name: str, data_dir: str | None, manual_dir: str | None
) -> pathlib.Path:
    """Find the folder of a prepared TFDS set; prepare it, or copy it, if need be."""
    root = _data_root(data_dir)
    if not isinstance(root, pathlib.Path):
        return tfds_fetch.fetch_prepared(name, root)
    manual = local_path(manual_dir, "manual_dir") if manual_dir else None
    if manual is not None and not os.path.isdir(manual):
        raise ValueError(
            f"manual_dir {str(manual)!r} is not a folder; expected the archives there"
        )
    folder = tfds_read.find_prepared(name, root)
    return folder or tfds_prepare.prepare(name, root, manual)


def _cache_path(folder: pathlib.Path, base: str) -> pathlib.Path:
    """Name the cache file of a split of a prepared set."""
    try:
        return cache.cache_path(folder, base)
    except OSError as error:
        raise ValueError(
            f"the prepared dataset in {folder} can't be read: {error}"
        ) from error


def _data_root(data_dir: str | None) -> Path:
    """Find the folder of the prepared sets, which may not exist yet."""
    name = "data_dir" if data_dir else "TFDS_DATA_DIR"
    text = data_dir or os.environ.get(name) or "~/tensorflow_datasets"
    root = any_path(text, name)
    if os.path.exists(root) and not os.path.isdir(root):
        raise ValueError(f"{name} {str(root)!r} is not a folder")
    return root
