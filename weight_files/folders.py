"""Write folders for Hugging Face's image classifiers, and files for timm."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from weight_files.pretrained import Pretrained
from weight_files.write import write_json, write_safetensors

_RESAMPLING = {"bilinear": 2, "bicubic": 3}


def write_huggingface(
    folder: pathlib.Path,
    arrays: Mapping[str, np.ndarray],
    config: Mapping[str, Any],
    pretrained: Pretrained,
) -> list[pathlib.Path]:
    """Write a folder that transformers opens.

    Args:
        folder: made if need be.
        arrays: name → array, as transformers names them.
        config: the content of config.json without the classes.
        pretrained: the model and what belongs to it.

    Returns:
        The files written.

    Raises:
        ValueError: if mean and standard deviation are not known, or safetensors is not
            installed.
    """
    if pretrained.mean is None or pretrained.std is None:
        raise ValueError("mean and std must be known to write for Hugging Face")
    num_classes = _num_classes(pretrained)
    names = pretrained.class_names or [f"LABEL_{it}" for it in range(num_classes)]
    names = names[:num_classes]
    labels = {
        "id2label": {str(label): name for label, name in enumerate(names)},
        "label2id": {name: label for label, name in enumerate(names)},
    }
    height, width, _ = pretrained.image_shape
    # 1e-6: 224 / (224 / 248) may be a little less than 248.
    scaled = [int(side / pretrained.crop_fraction + 1e-6) for side in (height, width)]
    is_stretched = pretrained.resize == "stretch"
    size = dict(zip(("height", "width"), scaled, strict=True))
    preprocessing = {
        # DeiT's resizes to a height and a width, Bit's keeps the proportions.
        "image_processor_type": f"{'DeiT' if is_stretched else 'Bit'}ImageProcessor",
        "do_resize": True,
        "size": size if is_stretched else {"shortest_edge": min(scaled)},
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "resample": _RESAMPLING[pretrained.resampling],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(pretrained.mean),
        "image_std": list(pretrained.std),
    }
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "config.json": {**config, **labels},
        "preprocessor_config.json": preprocessing,
    }
    write_safetensors(folder / "model.safetensors", arrays)
    for name, content in files.items():
        write_json(folder / name, content)
    return [folder / name for name in ("model.safetensors", *files)]


def _num_classes(pretrained: Pretrained) -> int:
    """Count the classes, 0 without a head; raise ValueError if the names are others."""
    num_classes: int = pretrained.model.num_classes or 0  # type: ignore (of all)
    names = pretrained.class_names
    if names is not None and num_classes not in (0, len(names)):
        raise ValueError(
            f"class_names must be as many as num_classes, {num_classes}, got "
            f"{len(names)}"
        )
    return num_classes


def write_timm(
    path: pathlib.Path,
    arrays: Mapping[str, np.ndarray],
    pretrained: Pretrained,
    **config: Any,
) -> list[pathlib.Path]:
    """Write a safetensors file, with timm's config in its header, which `load` reads.

    Args:
        path: the file.
        arrays: name → array, as timm or torchvision names them.
        pretrained: the model and what belongs to it.
        **config: further entries of the config.

    Returns:
        The file.
    """
    num_classes = _num_classes(pretrained)
    height, width, channels = pretrained.image_shape
    preprocessing = {
        "input_size": [channels, height, width],
        "mean": pretrained.mean,
        "std": pretrained.std,
        "crop_pct": pretrained.crop_fraction,
        "crop_mode": "squash" if pretrained.resize == "stretch" else "center",
        "interpolation": pretrained.resampling,
    }
    names = list(pretrained.class_names or ())[:num_classes]
    config |= {"pretrained_cfg": preprocessing, "label_names": names}
    write_safetensors(path, arrays, {"config": json.dumps(config)})
    return [path]
