"""Read JSON files, and write files whole or not at all."""

import json
import os
import pathlib
from typing import Any


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Read a JSON file.

    Raises:
        ValueError: naming the file, if it cannot be read or is no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {value!r:.40}")
    return value


def write_json(path: pathlib.Path, value: Any) -> None:
    """Write a JSON file, whole or not at all."""
    replace_file(path, json.dumps(value, indent=2) + "\n")


def replace_file(path: pathlib.Path, content: str | bytes | bytearray) -> None:
    """Write a file beside the path, then put it in its place."""
    content = content.encode() if isinstance(content, str) else content
    draft = path.with_name(path.name + ".draft")
    try:
        draft.write_bytes(content)
        os.replace(draft, path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
