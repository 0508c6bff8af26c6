"""Read JSON files, and write files whole or not at all, also in an object store."""

import contextlib
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

from train_jax.storage import store
from train_jax.storage.store import Path

# Suffix of a file that is being written.
DRAFT = ".draft"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file.

    Raises:
        ValueError: naming the file, if it cannot be read or is no JSON object.
    """
    try:
        with store.errors(path):
            value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {value!r:.40}")
    return value


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, whole or not at all."""
    replace_file(path, json.dumps(value, indent=2) + "\n")


def replace_file(path: Path, content: str | bytes | bytearray) -> None:
    """Write a file beside the path, to the disk, then put it in its place."""
    content = content.encode() if isinstance(content, str) else content
    if not isinstance(path, pathlib.Path):
        with store.errors(path):
            path.write_bytes(bytes(content))
        return
    draft = path.with_name(path.name + DRAFT)
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def append_line(path: Path, line: str) -> None:
    """Append a line to a file, and flush it to the disk.

    In an object store the file is replaced by a longer one.
    """
    if not isinstance(path, pathlib.Path):
        with store.errors(path):
            before = path.read_bytes() if path.exists() else b""
        replace_file(path, before + line.encode())
        return
    with path.open("a", encoding="utf-8") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


class LocalFolder:
    """A folder for what writes to local files alone, such as Matplotlib.

    In place of one of an object store it is a temporary folder.

    Attributes:
        path: the local folder.
    """

    def __init__(self, folder: Path):
        """Choose the local folder; one of this machine may not exist yet."""
        self._target = folder
        self._temporary = None
        if isinstance(folder, pathlib.Path):
            self.path = folder
        else:
            self._temporary = tempfile.TemporaryDirectory()
            self.path = pathlib.Path(self._temporary.name)

    def copy(self) -> None:
        """Copy the files to the object store, if they belong there.

        Raises:
            OSError: if they cannot be written.
        """
        if self._temporary is not None:
            for file in store.list_files(self.path):
                target = self._target / str(file.relative_to(self.path))
                replace_file(target, file.read_bytes())

    def close(self) -> None:
        """Delete the temporary folder; what was not copied is lost."""
        if self._temporary is not None:
            self._temporary.cleanup()


@contextlib.contextmanager
def open_folder(folder: Path) -> Iterator[pathlib.Path]:
    """Create a folder for what writes to local files alone, see `LocalFolder`.

    The files are copied at the end.

    Raises:
        OSError: if it cannot be written.
    """
    local = LocalFolder(folder)
    with contextlib.closing(local):
        local.path.mkdir(parents=True, exist_ok=True)
        yield local.path
        local.copy()
