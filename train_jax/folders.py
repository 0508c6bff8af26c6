"""Where this project keeps what it need not make twice."""

import os
import pathlib


def cache_folder() -> pathlib.Path:
    """The folder for decoded data and compiled programs; it may not exist yet."""
    root = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return root / "vit-resnet-jax"
