"""Find picture files: those that are named, and those in folders."""

import os
import pathlib
from collections.abc import Iterable, Iterator

SUFFIXES = frozenset(
    (
        *(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".avif", ".jfif", ".jpe"),
    )
)


def find_pictures(paths: Iterable[pathlib.Path]) -> list[pathlib.Path]:
    """List files as they are, and the picture files below folders, sorted.

    Hidden files and folders, whose names start with a dot, are left out.

    Args:
        paths: files, which may have any name, and folders.

    Raises:
        ValueError: for a folder without a picture; files are not checked.
    """
    found = []
    for path in paths:
        if not os.path.isdir(path):  # unlike `is_dir`, without errors
            found.append(path)
            continue
        below = sorted(_walk(path))
        if not below:
            raise ValueError(f"folder {str(path)!r} holds no picture")
        found += below
    return found


def _walk(root: pathlib.Path) -> Iterator[pathlib.Path]:
    """Find the pictures below a folder, also in folders that links lead to."""
    seen = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            file = pathlib.Path(folder, name)
            if file.suffix.lower() in SUFFIXES and not name.startswith("."):
                yield file
