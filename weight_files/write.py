"""Write files of weights: each appears whole, or not at all."""

import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from weight_files.extras import import_extra


def write_npz(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays as .npz."""

    def write(file: Any) -> None:
        np.savez(file, **arrays)  # type: ignore (the stub takes bool alone)

    _write(path, write)


def write_safetensors(
    path: pathlib.Path,
    arrays: Mapping[str, np.ndarray],
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write arrays as .safetensors.

    Args:
        path: the file.
        arrays: name → array.
        notes: goes into the file's header; "config" is read as config.json.

    Raises:
        ValueError: if safetensors, of the extra [hub], is not installed.
    """
    safetensors = import_extra(
        "safetensors.numpy", "a safetensors file needs", "vit-resnet-jax[hub]"
    )
    # transformers asks for the note "format".
    content = safetensors.save(dict(arrays), metadata={"format": "pt", **(notes or {})})
    _write(path, lambda file: file.write(content))


def write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    """Write an object as JSON, indented."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    _write(path, lambda file: file.write(text.encode()))


def _write(path: pathlib.Path, write: Callable[[Any], object]) -> None:
    """Write a file beside the path, then put it in its place."""
    draft = path.with_name(f"{path.name}.draft")
    try:
        with draft.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())  # or it may be empty after a power cut
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
