"""Object stores: a path such as gs://bucket/run, and what differs from a local one.

An object appears whole or not at all. It is never changed, only replaced; there are no
folders, only names that begin alike; and renaming is copying.
"""

import contextlib
import errno
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeAlias, Union

from train_jax.storage.paths import local_path

if TYPE_CHECKING:
    from etils import epath

# A path of this machine or, with the same methods, one of an object store.
Path: TypeAlias = Union[pathlib.Path, "epath.Path"]

SCHEME = "gs://"


def any_path(text: str, name: str) -> Path:
    """Turn what a user wrote into a path, of this machine or of Google Cloud Storage.

    Args:
        text: the flag's or field's value.
        name: what to call it in an error.

    Raises:
        ValueError: in one line, if it is neither, or if the bucket cannot be opened.
    """
    if not text.startswith(SCHEME):
        if "://" in text:
            raise ValueError(
                f"{name} must be a path on this machine or {SCHEME}BUCKET/FOLDER, "
                f"got {text!r}"
            )
        return local_path(text, name)
    bucket, _, folder = text.removeprefix(SCHEME).partition("/")
    if not bucket or not folder.strip("/"):
        raise ValueError(f"{name} must be {SCHEME}BUCKET/FOLDER, got {text!r}")
    try:
        files = _filesystem()
    except ImportError as error:
        raise ValueError(
            f'{name} {text!r} needs gcsfs: pip install "vit-resnet-jax[gcs]"'
        ) from error
    from etils import epath

    path = epath.Path(text.rstrip("/"))
    try:
        with errors(path):
            is_there = files.exists(bucket)
    except OSError as error:
        raise ValueError(
            f"{name} {text!r} cannot be opened: {error.strerror or error}"
        ) from error
    if not is_there:
        raise ValueError(f"{name} {text!r}: there is no bucket {bucket!r}")
    return path


def is_remote(path: Path) -> bool:
    """Whether a path is of an object store."""
    return not isinstance(path, pathlib.Path)


@contextlib.contextmanager
def errors(path: Path) -> Iterator[None]:
    """Raise what the client of an object store raises as an OSError; it names `path`.

    Errors at a path of this machine stay as they are.
    """
    if not is_remote(path):
        yield
        return
    import aiohttp
    from gcsfs.retry import HttpError
    from google.auth.exceptions import GoogleAuthError

    try:
        yield
    except (HttpError, GoogleAuthError, aiohttp.ClientError, OSError) as error:
        if isinstance(error, OSError) and error.strerror:
            raise
        number = errno.ENOENT if isinstance(error, FileNotFoundError) else errno.EIO
        reason = " ".join(str(error).split()) or type(error).__name__
        raise OSError(number, reason, str(path)) from error


def create_file(path: Path, content: bytes) -> bool:
    """Create a file, whole or not at all; False if there is one of this name.

    Raises:
        OSError: if it cannot be written.
    """
    if not isinstance(path, pathlib.Path):
        with errors(path):
            try:
                _filesystem().pipe_file(str(path), content, mode="create")
            except FileExistsError:
                return False
        return True
    try:
        file = path.open("xb")
    except FileExistsError:
        return False
    try:
        with file:
            file.write(content)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return True


def list_files(folder: Path) -> dict[Path, int]:
    """List all files below a folder, sorted, with their sizes in bytes.

    In an object store this asks once for a thousand files.
    """
    if isinstance(folder, pathlib.Path):
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {path: path.stat().st_size for path in files}
    root = str(folder).removeprefix(SCHEME) + "/"
    found = _filesystem().find(root, detail=True)
    return {folder / x.removeprefix(root): found[x]["size"] for x in sorted(found)}


def remove_folder(folder: Path) -> None:
    """Delete a folder and all that is in it; of a link, what is in its target.

    Raises:
        OSError: if that cannot be done; FileNotFoundError if there is none.
    """
    if not isinstance(folder, pathlib.Path):
        with errors(folder):
            folder.rmtree()
    elif folder.is_symlink():
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    else:
        shutil.rmtree(folder)


def absolute(path: Path) -> Path:
    """The path from the root."""
    return path.absolute() if isinstance(path, pathlib.Path) else path


def modified(path: Path) -> float:
    """When a file was last written, in seconds since 1970."""
    if isinstance(path, pathlib.Path):
        return path.stat().st_mtime
    return path.stat().mtime


def _filesystem() -> Any:
    """The client of Google Cloud Storage.

    Raises:
        ImportError: if it is not installed.
    """
    from etils.epath import gpath

    # etils.epath takes TensorFlow, where it is installed, unless this is set before the
    # first path is used; it may have been used already.
    os.environ.setdefault("EPATH_USE_TF", "0")
    if hasattr(gpath, "_is_tf_installed"):
        gpath._is_tf_installed.cache_clear()
    # Without it, gcsfs asks for the type of the bucket before each call.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    import fsspec.config
    import gcsfs  # noqa: F401

    # Another process may have written since a folder was listed.
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    return fsspec.filesystem("gcs")
