"""Paths that a user gives, and the folder of the cache."""

import os
import pathlib
import re


def cache_folder() -> pathlib.Path:
    """The folder for decoded data and compiled programs; it may not exist yet."""
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return local_path(root, "XDG_CACHE_HOME") / "vit-resnet-jax"


def local_path(text: str, name: str) -> pathlib.Path:
    """Turn what a user wrote into a path, the home folder `~` expanded.

    Args:
        text: the flag's, field's or environment variable's value.
        name: what to call it in an error.

    Raises:
        ValueError: for a URL, such as gs://bucket, and for an unknown home folder.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):  # C:/ is a drive
        raise ValueError(
            f"{name} must be a path on this machine, got the address {text!r}"
        )
    try:
        return pathlib.Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{name} {text!r}: there is no such home folder") from error
