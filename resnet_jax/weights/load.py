"""Load a ResNet from weights that others trained."""

from typing import Any

import numpy as np

from resnet_jax.resnet import ResNet
from resnet_jax.weights import huggingface, torch
from weight_files import (
    Pretrained,
    Source,
    Weights,
    fit_to_model,
    open_source,
    to_ours,
)
from weight_files.preprocessing import preprocessing_of
from weight_files.pretrained import (
    IMAGENET_CROP_FRACTION,
    IMAGENET_MEAN,
    IMAGENET_STD,
    WRONG_CONTENT,
    check_fields,
    describe_error,
    without_head,
)

# Side of an image, pixels, where nothing says another: of the two stems.
_SIDES = {"small": 32, "imagenet": 224}


def is_resnet(source: Source) -> bool:
    """Whether the names of a source's arrays are those of a ResNet."""
    is_torch = torch.recognizes(torch.read_arrays(source.arrays))
    return is_torch or huggingface.recognizes(source.arrays)


def load(
    source: Weights,
    *,
    image_size: tuple[int, int] | int | None = None,
    **fields: Any,
) -> Pretrained:
    """Load a ResNet from a file, a folder, the Hugging Face hub or a state dict.

    The layout is found out from the names of the arrays: that of torchvision, timm and
    the customary networks for CIFAR (kuangliu's, akamaster's), or Hugging Face's.

    Args:
        source: "FILE", "FOLDER", "hf://owner/name[@revision]" or a state dict; see
            `weight_files.open_source`.
        image_size: height and width, or one side, pixels; where nothing else says it,
            224 for the stem "imagenet", 32 for "small".
        **fields: of `ResNet`, in place of those that were found; `num_classes=None`
            leaves the head out.

    Returns:
        The model, its variables, and what belongs to them. The variables are numpy
        arrays.

    Raises:
        ValueError: in one line, if the source can't be read, is no ResNet, or has
            arrays too many or too few.
    """
    check_fields(ResNet, fields)
    opened = open_source(source)
    if isinstance(image_size, int):
        image_size = (image_size, image_size)
    if fields.get("num_classes", 0) is None:
        del fields["num_classes"]
        return without_head(load(opened, image_size=image_size, **fields))
    if not is_resnet(opened):
        raise ValueError(
            f"weights {opened.name!r} are not a ResNet of torchvision, timm or Hugging "
            "Face; their first names are "
            f"{', '.join(map(repr, list(opened.arrays)[:3])) or 'none'}"
        )
    try:
        read = torch.read_arrays(opened.arrays)
        _check_architecture(opened)
        if torch.recognizes(read):
            return _load(opened, read, torch.read_fields(read), image_size, fields)
        read = huggingface.read_arrays(opened.arrays)
        found = huggingface.read_fields(read, opened.config)
        return _load(opened, read, found, image_size, fields, layout=huggingface)
    except WRONG_CONTENT as error:
        raise ValueError(
            f"weights {opened.name!r} cannot be read as a ResNet: "
            f"{describe_error(error)}"
        ) from error


def _check_architecture(source: Source) -> None:
    """Raise ValueError for what timm computes otherwise with the same parameters."""
    arguments = source.config.get("model_args", {})
    for name in ("aa_layer", "output_stride", "act_layer"):
        if name in arguments:
            raise ValueError(
                f"a model with {name} {arguments[name]!r} is not supported"
            )
    for config in (source.config, arguments):
        pool = config.get("global_pool", "avg")
        if pool != "avg":
            raise ValueError(f"a model with global_pool {pool!r} is not supported")
    architecture = source.config.get("architecture", "")
    if architecture.startswith(("resnetaa", "resnetblur")):
        raise ValueError(
            f"{architecture!r}, whose strides are blurred, is not supported"
        )


def _load(
    source: Source,
    arrays: dict[str, np.ndarray],
    found: dict[str, Any],
    image_size: tuple[int, int] | None,
    fields: dict[str, Any],
    *,
    layout: Any = torch,
) -> Pretrained:
    """Load from an opened source of a known layout."""
    channels = found.pop("channels")
    model = ResNet(**(found | fields))
    preprocessing: dict[str, Any] = preprocessing_of(source)
    side = _SIDES[model.stem]
    known = preprocessing.pop("image_size", (side, side))
    size = image_size or known
    # The networks of these kinds are trained with ImageNet's statistics.
    if channels == 3 and (model.stem == "imagenet" or model.shortcut == "padding"):
        preprocessing = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, **preprocessing}
    if model.stem == "imagenet":
        preprocessing = {"crop_fraction": IMAGENET_CROP_FRACTION, **preprocessing}
    image_shape = (size[0], size[1], channels)
    read = to_ours(layout.table(model), arrays)
    variables = fit_to_model(model, read, image_shape)
    return Pretrained(model, variables, image_shape, **preprocessing)
