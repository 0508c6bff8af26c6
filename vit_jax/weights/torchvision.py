"""The layout of torchvision's `VisionTransformer`."""

import re
from collections.abc import Mapping
from typing import Any

from vit_jax.vit import ViT
from vit_jax.weights.format import (
    Arrays,
    Format,
    check_plain,
    count_blocks,
    find_num_heads,
    patch_embedding,
    square_side,
)
from weight_files import Entry, Source, dense, fused, norm, renamed
from weight_files.pretrained import (
    IMAGENET_CROP_FRACTION,
    IMAGENET_MEAN,
    IMAGENET_STD,
)

_BLOCK = "encoder.layers.encoder_layer_"
_OLDER = {"linear_1": "0", "linear_2": "3"}


def _recognizes(arrays: Mapping[str, Any]) -> bool:
    return "conv_proj.weight" in arrays and "class_token" in arrays


def _simplify(arrays: Arrays) -> Arrays:
    """Give the MLPs their newer names."""
    older = re.compile(r"(?<=\.mlp\.)(linear_\d)(?=\.)")
    return {older.sub(lambda m: _OLDER[m[1]], k): array for k, array in arrays.items()}


def _read_fields(source: Source) -> dict[str, Any]:
    arrays = _simplify(source.arrays)
    width, channels, patch_size, _ = arrays["conv_proj.weight"].shape
    depth = count_blocks(arrays, _BLOCK)
    features = arrays.get("heads.pre_logits.weight")
    logits = arrays.get("heads.head.weight")
    rows = square_side(arrays["encoder.pos_embedding"].shape[1] - 1)
    side = rows and rows * patch_size
    is_colour = channels == 3
    return {
        "num_classes": None if logits is None else len(logits),
        "patch_size": patch_size,
        "width": width,
        "depth": depth,
        **find_num_heads(width, depth, source.config.get("model_args", {})),
        "mlp_ratio": len(arrays[f"{_BLOCK}0.mlp.0.weight"]) / width,
        "activation": "gelu",
        "representation_size": None if features is None else len(features),
        "position_std": 0.02,
        "channels": channels,
        "image_size": side and (side, side),
        **_resizing(side, width, patch_size),
        **({"mean": IMAGENET_MEAN, "std": IMAGENET_STD} if is_colour else {}),
    }


def _resizing(side: int | None, width: int, patch_size: int) -> dict[str, Any]:
    """Say how images were resized for the first weights of each model and size."""
    if side != 224:
        return {"crop_fraction": 1.0, "resampling": "bicubic"}
    is_l16 = (width, patch_size) == (1024, 16)
    return {"crop_fraction": 224 / 242 if is_l16 else IMAGENET_CROP_FRACTION}


def _table(model: ViT) -> list[Entry]:
    entries = patch_embedding("embedding", "conv_proj", model)
    entries.append(renamed("params/cls", "class_token"))
    entries.append(renamed("params/pos_embedding", "encoder.pos_embedding"))
    for layer in range(model.depth):
        ours, theirs = f"params/encoder/block_{layer}", f"{_BLOCK}{layer}"
        attention = f"{theirs}.self_attention"
        qkv = [f"{ours}/attention/{name}" for name in ("query", "key", "value")]
        entries += fused(
            qkv, f"{attention}.in_proj_weight", f"{attention}.in_proj_bias"
        )
        entries += dense(f"{ours}/attention/out", f"{attention}.out_proj")
        entries += dense(f"{ours}/mlp/hidden", f"{theirs}.mlp.0")
        entries += dense(f"{ours}/mlp/out", f"{theirs}.mlp.3")
        entries += norm(f"{ours}/attention_norm", f"{theirs}.ln_1")
        entries += norm(f"{ours}/mlp_norm", f"{theirs}.ln_2")
    entries += norm("params/encoder/norm", "encoder.ln")
    for ours, theirs, size in (
        ("pre_logits", "heads.pre_logits", model.representation_size),
        ("head", "heads.head", model.num_classes),
    ):
        if size is not None:
            entries += dense(f"params/{ours}", theirs)
    return entries


TORCHVISION = Format(
    library="torchvision",
    recognizes=_recognizes,
    read_fields=_read_fields,
    read_arrays=lambda arrays, model, num_patches: _simplify(arrays),
    table=_table,
    check=lambda model: check_plain(model, "torchvision", representation_size=()),
)


def check_torchvision(model: ViT, image_shape: tuple[int, int, int]) -> None:
    """Raise ValueError unless the model has a head and takes square RGB images."""
    height, width, channels = image_shape
    if height != width or channels != 3 or model.num_classes is None:
        raise ValueError(
            "torchvision's ViT takes square images of 3 channels and has a head; the "
            f"model has image_shape {image_shape} and num_classes {model.num_classes}"
        )
