"""Find picture files: those that are named, and those in folders."""

import pathlib
from collections.abc import Iterable

SUFFIXES = frozenset(
    (
        *(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"),
        *(".ppm", ".pgm", ".jp2", ".avif"),
    )
)


def find_pictures(paths: Iterable[pathlib.Path]) -> list[pathlib.Path]:
    """List files as they are, and the picture files below folders, sorted.

    Hidden files and folders, whose names start with a dot, are left out.

    Args:
        paths: files, which may have any name, and folders.

    Raises:
        ValueError: for what is not there, and for a folder without a picture.
    """
    found = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        below = sorted(
            file
            for file in path.rglob("*")
            if file.suffix.lower() in SUFFIXES
            and not any(part.startswith(".") for part in file.relative_to(path).parts)
        )
        if not below:
            raise ValueError(f"folder {str(path)!r} holds no picture")
        found += below
    return found
