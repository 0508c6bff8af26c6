"""Write the checksums of a folder's files; find files that have changed since."""

import hashlib
import io
import json
from collections.abc import Mapping
from typing import cast

from train_jax.output.files import replace_file
from train_jax.storage import store
from train_jax.storage.store import Path

FILE = "checksums.json"


def write_checksums(folder: Path) -> None:
    """Write the checksums of all files in the subfolders of a folder."""
    checksums = {
        str(path.relative_to(folder)): _checksum(path)
        for path in store.list_files(folder)
        if path.parent != folder
    }
    replace_file(folder / FILE, _to_text(checksums))


def find_damage(folder: Path, subfolder: str = "") -> str | None:
    """Compare files with their checksums.

    Args:
        folder: for which `write_checksums` was called.
        subfolder: the only one to look at; all of them by default.

    Returns:
        What is wrong, "FILE is missing" for instance; None if nothing is.
    """
    if not (folder / FILE).is_file():
        return f"{FILE} is missing"
    try:
        text = (folder / FILE).read_text(encoding="utf-8")
        checksums = json.loads(text)["files"]
    except (ValueError, LookupError, TypeError):
        return f"{FILE} is not readable"
    if text != _to_text(checksums):
        return f"{FILE} has changed since it was written"
    for name, checksum in checksums.items():
        path = folder / name
        if not path.is_relative_to(folder / subfolder):
            continue
        if not path.is_file():
            return f"{name} is missing"
        if _checksum(path) != checksum:
            return f"{name} has changed since it was written"
    return None


def _to_text(checksums: Mapping[str, str]) -> str:
    """Format the checksums of all files, and a checksum of these."""
    own = hashlib.sha256(json.dumps(checksums).encode()).hexdigest()
    return json.dumps({"files": checksums, "sha256": own}, indent=2) + "\n"


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(
            cast("io.BufferedIOBase", file), "sha256"
        ).hexdigest()
