"""Load a ViT from weights that others trained."""

from typing import Any

from vit_jax.vit import ViT
from vit_jax.weights.authors import AUTHORS
from vit_jax.weights.format import Format, UnknownHeadsError
from vit_jax.weights.huggingface import HUGGINGFACE
from vit_jax.weights.scan import stack_blocks
from vit_jax.weights.timm import TIMM
from vit_jax.weights.torchvision import TORCHVISION
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
    WRONG_CONTENT,
    check_fields,
    describe_error,
    without_head,
)

FORMATS: dict[str, Format] = {
    "timm": TIMM,
    "hf": HUGGINGFACE,
    "torchvision": TORCHVISION,
    "npz": AUTHORS,
}


def load(
    source: Weights,
    *,
    image_size: tuple[int, int] | int | None = None,
    **fields: Any,
) -> Pretrained:
    """Load a ViT from a file, a folder, the Hugging Face hub or a state dict.

    The layout is found out from the names of the arrays: the authors' (.npz, of
    google-research/vision_transformer and big_vision), timm's, Hugging Face's or
    torchvision's. Activation, epsilon and normalisation are those of its library.

    Args:
        source: "FILE", "FOLDER", "hf://owner/name[@revision]" or a state dict; see
            `weight_files.open_source`.
        image_size: height and width that the weights are for, or one side, pixels;
            needed where the patches form no square, and nothing else says so.
        **fields: of `ViT`, in place of those that were found; such as `num_heads`,
            which files in PyTorch's layout do not tell, or `pool`. `num_classes=None`
            leaves the head out.

    Returns:
        The model, its variables, and what belongs to them. The parameters are numpy
        arrays.

    Raises:
        ValueError: in one line, if the source can't be read, is no ViT, has arrays too
            many or too few, or if something about it has to be given.

    References: the layouts are those of github.com/google-research/vision_transformer,
    github.com/google-research/big_vision, timm, transformers and torchvision.
    """
    check_fields(ViT, fields)
    opened = open_source(source)
    if isinstance(image_size, int):
        image_size = (image_size, image_size)
    if fields.get("num_classes", 0) is None:
        del fields["num_classes"]
        return without_head(load(opened, image_size=image_size, **fields))
    for layout in FORMATS.values():
        if layout.recognizes(opened.arrays):
            break
    else:
        libraries = ", ".join(it.library for it in FORMATS.values())
        raise ValueError(
            f"weights {opened.name!r} are not a ViT of {libraries}; their first names "
            f"are {', '.join(map(repr, list(opened.arrays)[:3])) or 'none'}"
        )
    try:
        return _load(opened, layout, image_size, fields)
    except UnknownHeadsError:
        raise
    except WRONG_CONTENT as error:
        raise ValueError(
            f"weights {opened.name!r} cannot be read as a ViT of {layout.library}: "
            f"{describe_error(error)}"
        ) from error


def _is_as_many(size: tuple[int, ...], other: tuple[int, ...], patch: int) -> bool:
    """Whether images of two sizes have as many patches."""
    counts = [(height // patch) * (width // patch) for height, width in (size, other)]
    return counts[0] == counts[1]


def _load(
    source: Source, layout: Format, image_size: tuple[int, int] | None, fields: Any
) -> Pretrained:
    """Load from an opened source of a known layout."""
    found = layout.read_fields(source)
    preprocessing = preprocessing_of(source)
    channels, square = found.pop("channels"), found.pop("image_size")
    patch = found["patch_size"]
    # Pixels that fill no patch are cut off by timm.
    sides = preprocessing.pop("image_size", ())
    known = tuple(side // patch * patch for side in sides) or None
    if known and square and not _is_as_many(known, square, patch):
        known = None
    size = image_size or known or square
    names = {"mean", "std", "crop_fraction", "resampling", "resize"} & found.keys()
    extras = {name: found.pop(name) for name in names}
    if "num_heads" not in found | fields:
        raise UnknownHeadsError(
            f"num_heads must be given for a width of {found['width']} and a depth of "
            f"{found['depth']}, as weights {source.name!r} don't say it"
        )
    if size is None:
        raise ValueError("image_size must be given, as their patches form no square")
    model = ViT(**(found | fields | {"scan": False}))
    num_patches = (size[0] // model.patch_size) * (size[1] // model.patch_size)
    arrays = layout.read_arrays(dict(source.arrays), model, num_patches)
    image_shape = (size[0], size[1], channels)
    read = to_ours(layout.table(model), arrays)
    variables = fit_to_model(model, read, image_shape)
    if fields.get("scan"):
        model = model.clone(scan=True)
        variables = {**variables, "params": stack_blocks(variables["params"])}
    return Pretrained(model, variables, image_shape, **(extras | preprocessing))
