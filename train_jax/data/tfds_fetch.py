"""Copy a prepared TFDS set from an object store to this machine."""

import concurrent.futures
import os
import pathlib
import shutil
import sys
import tempfile
from typing import cast

from train_jax.data import tfds_read
from train_jax.storage import store
from train_jax.storage.paths import cache_folder
from train_jax.storage.store import Path

# Files that are copied at the same time.
_NUM_THREADS = 8


def fetch_prepared(name: str, root: Path) -> pathlib.Path:
    """Copy a prepared set to the cache folder, unless it is there.

    Args:
        name: of the set, as TFDS writes it.
        root: folder of prepared sets in the object store.

    Returns:
        The folder of the set on this machine.

    Raises:
        ValueError: in one line, if there is no such set, or it cannot be copied.
    """
    try:
        with store.errors(root):
            # It has the methods that are used there.
            source = tfds_read.find_prepared(name, cast(pathlib.Path, root))
            if source is None:
                raise ValueError(
                    f"dataset {name!r} is not prepared in {str(root)!r}; prepare it in "
                    "a folder of this machine, and copy that folder there"
                )
            return _copy(source)
    except OSError as error:
        raise ValueError(
            f"dataset {name!r} cannot be copied from {str(root)!r}: "
            f"{error.strerror or error}"
        ) from error


def _copy(source: Path) -> pathlib.Path:
    """Copy a folder of an object store to the cache folder, and say so."""
    target = cache_folder() / "tfds" / str(source).removeprefix(store.SCHEME)
    target.mkdir(parents=True, exist_ok=True)
    sizes = store.list_files(source)
    missing = [
        file
        for file, size in sizes.items()
        if _size(target / file.relative_to(source)) != size
    ]
    needed, free = sum(sizes[file] for file in missing), shutil.disk_usage(target).free
    if needed > free:
        raise ValueError(
            f"{source} needs {needed / 2**30:,.1f} GiB in {target}, where "
            f"{free / 2**30:,.1f} are free; XDG_CACHE_HOME names another folder"
        )
    if missing:
        print(
            f"copying {source} to {target}: {needed / 2**20:,.0f} MiB",
            file=sys.stderr,
            flush=True,
        )
    with concurrent.futures.ThreadPoolExecutor(_NUM_THREADS) as threads:
        for _ in threads.map(
            lambda file: _copy_file(file, target / file.relative_to(source)), missing
        ):
            pass
    return target


def _copy_file(source: Path, target: pathlib.Path) -> None:
    """Copy a file, whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        draft = pathlib.Path(folder) / target.name
        with source.open("rb") as reader, draft.open("wb") as writer:
            shutil.copyfileobj(reader, writer, 2**20)
        os.replace(draft, target)


def _size(path: pathlib.Path) -> int | None:
    """The size of a file; None if it is missing."""
    return path.stat().st_size if path.exists() else None
