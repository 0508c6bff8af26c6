"""Read how images are prepared, from the configs of weights."""

from collections.abc import Mapping
from typing import Any

from weight_files.pretrained import IMAGENET_CROP_FRACTION
from weight_files.read import Source

# The processor that transformers takes for a type of model where none is named.
_PROCESSORS = {"resnet": "ConvNext", "vit": "ViT"}
# Processors for which one number is the shorter side; for others it is both sides.
_OF_SHORTER_SIDE = ("Bit", "CLIP", "Siglip")


def preprocessing_of(source: Source) -> dict[str, Any]:
    """Read normalisation, size, resizing and class names from a source's configs.

    They may be those of Hugging Face or of timm.

    Returns:
        The fields of `Pretrained` that the source tells, without `image_shape`; and
        "image_size", (height, width), where it tells that.

    Raises:
        ValueError: if images are prepared in a way that is not supported.
    """
    config, preprocessing = source.config, source.preprocessing
    timm = config.get("pretrained_cfg", {})
    found: dict[str, Any] = {}
    mean = preprocessing.get("image_mean", timm.get("mean"))
    std = preprocessing.get("image_std", timm.get("std"))
    if mean is not None and std is not None:
        if preprocessing.get("do_normalize") is False:
            mean, std = (0.0,) * len(mean), (1.0,) * len(std)
        found |= {"mean": tuple(mean), "std": tuple(std)}
    names = config.get("id2label") or config.get("label_names")
    if isinstance(names, Mapping):
        names = [names[key] for key in sorted(names, key=int)]
    if names:
        found["class_names"] = tuple(names)
    if config.get("image_size") is not None:
        found["image_size"] = _height_and_width(config["image_size"])
    found |= _resizing_of_timm(timm)
    if preprocessing.get("size") is not None:
        found |= _resizing_of_transformers(preprocessing, config.get("model_type"))
    method = preprocessing.get("resample", timm.get("interpolation"))
    if method:
        found["resampling"] = "bicubic" if method in (3, "bicubic") else "bilinear"
    if not 0 < found.get("crop_fraction", 1.0) <= 1:
        raise ValueError(
            f"their crop_pct must be in (0, 1], got {found['crop_fraction']}"
        )
    return found


def _resizing_of_timm(config: Mapping[str, Any]) -> dict[str, Any]:
    """Read how timm resizes images, from its `pretrained_cfg`."""
    found: dict[str, Any] = {}
    mode = config.get("crop_mode") or "center"
    if mode not in ("center", "squash"):
        raise ValueError(f"crop_mode {mode!r} is not supported")
    if "input_size" in config:
        found["image_size"] = _height_and_width(config["input_size"][1:])
        found["resize"] = "stretch" if mode == "squash" else "crop"
    if config.get("crop_pct") is not None:
        found["crop_fraction"] = float(config["crop_pct"])
    return found


def _resizing_of_transformers(
    config: Mapping[str, Any], model_type: str | None
) -> dict[str, Any]:
    """Read how a processor of transformers resizes images."""
    size = config["size"]
    height, width = _height_and_width(size)
    kind = config.get("image_processor_type") or config.get("feature_extractor_type")
    kind = kind or _PROCESSORS.get(model_type or "", "")
    if isinstance(size, Mapping):
        keeps_proportions = "height" not in size
    else:
        keeps_proportions = isinstance(size, int) and kind.startswith(_OF_SHORTER_SIDE)
    fraction = config.get("crop_pct") or 1.0
    if kind.startswith("ConvNext"):
        keeps_proportions = height < 384
        fraction = config.get("crop_pct") or IMAGENET_CROP_FRACTION
        fraction = fraction if keeps_proportions else 1.0
    if config.get("do_center_crop") and config.get("crop_size"):
        crop = _height_and_width(config["crop_size"])
        fraction = min(crop) / min(height, width)
        is_alike = crop[0] * width == crop[1] * height
        if fraction > 1 or not (keeps_proportions or is_alike):
            raise ValueError(
                f"their crop_size must be a part of their size, got {crop} of "
                f"{(height, width)}"
            )
        height, width = crop
    return {
        "image_size": (height, width),
        "crop_fraction": float(fraction),
        "resize": "crop" if keeps_proportions else "stretch",
    }


def _height_and_width(size: Any) -> tuple[int, int]:
    """Parse an image size: a number, a list of one or two, or named sides."""
    if isinstance(size, Mapping):
        edge = size.get("shortest_edge")
        height, width = size.get("height", edge), size.get("width", edge)
        if height is None or width is None:
            raise ValueError(
                "their size must be a height and a width, or a shortest edge, got "
                f"{dict(size)}"
            )
        return (height, width)
    if isinstance(size, int):
        return (size, size)
    return (size[0], size[-1])
