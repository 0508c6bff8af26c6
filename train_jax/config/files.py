"""Find and run config files: by path, or by the name of a bundled one."""

import importlib.resources
import importlib.util
import pathlib
import re
import sys
from typing import Any

import numpy as np

from train_jax.config.options import closest
from train_jax.storage.paths import local_path

# What a mistake in a config file, which is a program, is likely to raise.
_FILE_FAULTS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


def read_config_file(path: str, name: str) -> Any:
    """Run a config file and return what it defines under a name.

    Args:
        path: the file, or the name of a bundled config; either with :ARGUMENT.
        name: of a constant, or of a function, which is called, with the argument if
            there is one.

    Raises:
        ValueError: if the file cannot be run, or has no such name.
    """
    file, *argument = split_argument(path)
    spec = importlib.util.spec_from_file_location("_config", _find(file, path))
    if spec is None or spec.loader is None:
        raise ValueError(f"--config must name a Python file (.py), got {path!r}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
        value = getattr(module, name, None)
        if value is not None:
            return value(*argument) if callable(value) else value
    except _FILE_FAULTS as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(f"--config {path!r} could not be read: {reason}") from error
    raise ValueError(f"--config {path!r} does not define {name}")


def split_argument(path: str) -> list[str]:
    """Split FILE.py:ARGUMENT or NAME:ARGUMENT: [file] or [file, argument]."""
    # One letter before the colon is a drive, :// part of an address.
    match = re.fullmatch(r"(.*?\.py|\w{2,}(?!://)):(.*)", path, re.DOTALL)
    return [match[1], match[2]] if match else [path]


def bundled_configs() -> dict[str, pathlib.Path]:
    """List the configs that come with the project: name → file.

    An installed package contains them; in the repository they lie beside it.
    """
    package = pathlib.Path(str(importlib.resources.files("train_jax")))
    for folder in (package / "configs", package.parent / "configs"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("[a-z]*.py"))}
    return {}


def _find(file: str, path: str) -> pathlib.Path:
    """Find a config's file; raise ValueError, naming the path given, without one."""
    found = local_path(file, "--config")
    if _is_file(found):
        return found
    allowed, bundled = "a readable file", bundled_configs()
    if re.fullmatch(r"\w+", file):
        if file in bundled:
            return bundled[file]
        allowed += "".join(f", or one of {', '.join(bundled)}" if bundled else "")
    close = closest(pathlib.PurePath(file).stem, bundled)
    hint = f"; did you mean {close}?" if close else ""
    raise ValueError(f"--config must name {allowed}, got {path!r}{hint}")


def _is_file(path: pathlib.Path) -> bool:
    """Whether there is such a file; a name that no file could have is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def without_numpy(value: Any) -> Any:
    """Turn NumPy's numbers, whose repr has their type, into Python's."""
    if isinstance(value, tuple | list):
        return [without_numpy(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value
