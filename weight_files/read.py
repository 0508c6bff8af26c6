"""Read weights from a file, a folder or the Hugging Face hub, without running any code.

Files: .npz; .safetensors, which needs the extra [hub]; PyTorch's .pth, .pt, .th and
.bin, which need torch. Pickles are read with `weights_only=True`, or not at all.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import re
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from weight_files.extras import import_extra

Arrays = dict[str, np.ndarray]

# What numpy and zipfile raise for a damaged .npz.
_DAMAGED = (
    *(ValueError, EOFError, TypeError, NotImplementedError),
    *(zipfile.BadZipFile, zlib.error, tokenize.TokenError),
)

_TORCH = (".pth", ".pt", ".th", ".bin")
_SUFFIXES = (".npz", ".safetensors", *_TORCH)
# The weights in a folder, the first that is there.
_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "model.npz",
)
_CONFIGS = {"config": "config.json", "preprocessing": "preprocessor_config.json"}
# Under these keys training scripts keep the weights in a dict of other things; the
# averaged ones are those that timm and torchvision evaluate.
_NESTED = (
    *("state_dict_ema", "model_ema"),
    *("state_dict", "model_state_dict", "model", "net", "weights"),
)
_HUB = re.compile(r"hf://([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?")


@dataclasses.dataclass(frozen=True)
class Source:
    """Weights as they were read.

    Attributes:
        name: where they come from, for messages.
        arrays: name → array; floats are float32.
        config: what `config.json` holds, where there is one.
        preprocessing: what `preprocessor_config.json` holds, likewise.
    """

    name: str
    arrays: Arrays
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    preprocessing: Mapping[str, Any] = dataclasses.field(default_factory=dict)


Weights = str | os.PathLike[str] | Mapping[str, Any] | Source


def open_source(source: Weights) -> Source:
    """Read weights and what is known about them.

    Args:
        source: a file; a folder as Hugging Face and timm write them; "hf://owner/name"
            or "hf://owner/name@revision", which is downloaded or taken from the hub's
            cache; a state dict, name → tensor or array; or what this function returned.

    Raises:
        ValueError: in one line, if it is not there, is damaged or of another kind, or
            needs a library that is not installed.
    """
    if isinstance(source, Source):
        return source
    if isinstance(source, Mapping):
        arrays = _unwrap(source, "a state dict")
        return Source("a state dict", {k: _as_float32(x) for k, x in arrays.items()})
    name = os.fspath(source)
    path = _download(name) if name.startswith("hf://") else pathlib.Path(name)
    try:
        if path.is_dir():
            texts = {key: _read_json(path / file) for key, file in _CONFIGS.items()}
            file = _find_weights(path)
            arrays = _read_file(file) if file.suffix != ".json" else _read_shards(file)
            texts["config"] = _read_note(file) | texts["config"]
            return Source(name, arrays, **texts)
        if not path.is_file():
            raise ValueError(f"weights {name!r} do not exist")
        return Source(name, _read_file(path), config=_read_note(path))
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"weights {name!r} can't be read: {reason}") from error


def _download(name: str) -> pathlib.Path:
    """Bring a repository of the hub into its cache, if it is not there."""
    match = _HUB.fullmatch(name)
    if match is None:
        raise ValueError(
            f"weights must be hf://owner/name or hf://owner/name@revision, got {name!r}"
        )
    hub = _import("huggingface_hub", name)
    repository, revision = match.groups()
    patterns = [*_CONFIGS.values(), *_NAMES, "model-*.safetensors"]
    fetch = functools.partial(hub.snapshot_download, repository, revision=revision)
    try:
        with contextlib.suppress(OSError, hub.errors.HTTPError):  # offline
            found = hub.HfApi().model_info(repository, revision=revision, timeout=10)
            files = [file.rfilename for file in found.siblings]
            first = next((name for name in _NAMES if name in files), None)
            if first is not None and not first.endswith(".index.json"):
                patterns = [*_CONFIGS.values(), first]
        return pathlib.Path(fetch(allow_patterns=patterns))
    except (OSError, ValueError, hub.errors.HTTPError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"weights {name!r} can't be fetched: {reason}") from error


def _find_weights(folder: pathlib.Path) -> pathlib.Path:
    """Find the file of weights in a folder, or the index of several."""
    for name in _NAMES:
        if (folder / name).is_file():
            return folder / name
    raise ValueError(
        f"weights {str(folder)!r} must be a folder with one of {', '.join(_NAMES)}"
    )


def _read_shards(index: pathlib.Path) -> Arrays:
    """Read the files that an index names."""
    arrays: Arrays = {}
    for file in sorted(set(_read_json(index).get("weight_map", {}).values())):
        # The index may come from anywhere; it names files of this folder alone.
        arrays |= _read_file(index.parent / pathlib.PurePath(file).name)
    return arrays


def _read_file(path: pathlib.Path) -> Arrays:
    """Read a file of weights."""
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        allowed = ", ".join(_SUFFIXES)
        raise ValueError(f"weights {str(path)!r} must be a file of: {allowed}")
    read = {".npz": _read_npz, ".safetensors": _read_safetensors}
    arrays = read.get(suffix, _read_torch)(path)
    return {name: _as_float32(array) for name, array in arrays.items()}


def _read_npz(path: pathlib.Path) -> Arrays:
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except _DAMAGED as error:
        raise _damaged(path, error) from error


def _read_safetensors(path: pathlib.Path) -> Arrays:
    safetensors = _import("safetensors", str(path))
    numpy = _import("safetensors.numpy", str(path))
    try:
        return numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise _damaged(path, error) from error


def _read_note(path: pathlib.Path) -> dict[str, Any]:
    """Read the config in the header of a safetensors file; nothing if it has none."""
    if path.suffix.lower() != ".safetensors":
        return {}
    safetensors = _import("safetensors", str(path))
    with safetensors.safe_open(path, framework="numpy") as file:
        text = (file.metadata() or {}).get("config", "{}")
    return _parse_json(text, path)


def _read_torch(path: pathlib.Path) -> dict[str, Any]:
    torch = _import("torch", str(path), "torch")
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
    except OSError:
        raise
    except Exception as error:  # of pickle, zip and PyTorch, for any kind of damage
        if "Unsupported global" in str(error):
            raise ValueError(
                f"weights {str(path)!r} are pickled with other objects than tensors, "
                "which are not read; save the state dict alone"
            ) from error
        raise _damaged(path, error) from error
    return _unwrap(content, str(path))


def _unwrap(content: Any, name: str) -> dict[str, Any]:
    """Find the arrays in what a training script saved, by their names.

    Raises:
        ValueError: if it holds something else.
    """
    for key in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    arrays = content if isinstance(content, Mapping) else {"": content}
    others = [key for key, array in arrays.items() if not hasattr(array, "shape")]
    if others:
        raise ValueError(
            f"weights {name!r} must be a state dict of tensors only; {others[0]!r} is "
            "not a tensor"
        )
    # Of models that were wrapped by DataParallel or torch.compile.
    wrapped = re.compile(r"^(module\.|_orig_mod\.)+")
    # PyTorch's AveragedModel counts the states in it.
    names = [key for key in arrays if key != "n_averaged"]
    return {wrapped.sub("", str(key)): arrays[key] for key in names}


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    """Read an object from a JSON file; nothing if it is not there."""
    if not path.is_file():
        return {}
    try:
        return _parse_json(path.read_text(encoding="utf-8"), path)
    except UnicodeDecodeError as error:
        raise _damaged(path, error) from error


def _parse_json(text: str, path: pathlib.Path) -> dict[str, Any]:
    """Parse an object that a file holds."""
    try:
        content = json.loads(text)
    except ValueError as error:
        raise _damaged(path, error) from error
    if not isinstance(content, dict):
        raise _damaged(path, ValueError("it holds no JSON object"))
    return content


def _as_float32(array: Any) -> np.ndarray:
    """Turn an array or tensor of floats, also of 16 bits, into float32."""
    if hasattr(array, "detach"):
        array = array.detach().cpu()
        array = array.float() if array.is_floating_point() else array
    array = np.asarray(array)
    if array.dtype == np.dtype("V2"):  # numpy writes bfloat16 as bytes without a type
        array = array.view(jnp.bfloat16)
    return array if array.dtype.kind in "iub" else array.astype(np.float32)


def _import(module: str, name: str, package: str = "vit-resnet-jax[hub]") -> Any:
    """Import a library that only some files need; the package brings it."""
    return import_extra(module, f"weights {name!r} need", package)


def _damaged(path: pathlib.Path, error: Exception) -> ValueError:
    reason = " ".join(str(error).split())[:200]
    return ValueError(f"weights {str(path)!r} are damaged: {reason}")
