"""Cache decoded splits on disk, so that the next start is quick."""

import hashlib
import json
import logging
import os
import pathlib
import tempfile
import zipfile
from typing import Any

import numpy as np

from train_jax.data.split import ImageSplit
from train_jax.storage.paths import cache_folder

_log = logging.getLogger(__name__)

# Part of every key: increase it when the content of the files changes its meaning.
_CACHE_FORMAT = 2


def cache_path(folder: pathlib.Path, base: str) -> pathlib.Path:
    """Name the cache file of a split by a hash of its source files' sizes and times."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    stats = [
        (path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files
    ]
    label = "-".join([*folder.parts[-2:], base])
    return path_of(label, [str(folder.resolve()), stats, base])


def path_of(label: str, facts: Any) -> pathlib.Path:
    """Name a cache file by a label, and a hash of what its content depends on."""
    source = json.dumps([_CACHE_FORMAT, *facts])
    key = hashlib.sha256(source.encode()).hexdigest()[:16]
    return cache_folder() / f"{label}-{key}.npz"


def read_cache(path: pathlib.Path) -> ImageSplit | None:
    """Read a cached split; None if it is missing or unreadable."""
    try:
        # np.load would leave the file open if it finds that it can't read it.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            image_BHWC, label_B = arrays["image"], arrays["label"]
            names = tuple(arrays["class_names"].tolist())
    except FileNotFoundError:
        return None
    except (
        OSError,
        ValueError,
        KeyError,
        EOFError,
        RuntimeError,  # What zipfile raises for features it doesn't know.
        zipfile.BadZipFile,
    ) as error:
        _log.warning("rebuilding the unreadable cache %s (%s)", path, error)
        return None
    return ImageSplit(image_BHWC, label_B, names)


def write_cache(path: pathlib.Path, data: ImageSplit) -> None:
    """Write a split to the cache, completely or not at all; failure is only logged."""
    names = np.array(data.class_names)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            file = pathlib.Path(scratch) / path.name
            np.savez(file, image=data.image_BHWC, label=data.label_B, class_names=names)
            os.replace(file, path)
    except OSError as error:
        _log.warning("no cache written, the next start will be slower: %s", error)
