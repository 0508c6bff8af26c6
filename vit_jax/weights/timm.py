"""The layout of timm: fused query, key and value, registers, LayerScale, pooling."""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.checks import check_choice
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

_POOLS = {"token": "cls", "avg": "mean", "map": "map"}
# Models that timm makes with the tanh form of GELU, which their files do not say.
_GELU_TANH = re.compile(
    r"vit_(base_patch32|so400m_patch16|giantopt_patch16)_siglip"
    r"|vit_large_patch16_siglip_(gap_)?512"
)


def _recognizes(arrays: Mapping[str, Any]) -> bool:
    return "patch_embed.proj.weight" in arrays and "blocks.0.norm1.weight" in arrays


def _read_fields(source: Source) -> dict[str, Any]:
    arrays = source.arrays
    arguments = source.config.get("model_args", {})
    width, channels, patch_size, _ = arrays["patch_embed.proj.weight"].shape
    hidden = len(arrays["blocks.0.mlp.fc1.weight"])
    if arrays["blocks.0.mlp.fc2.weight"].shape[1] != hidden:
        raise ValueError("a ViT with gated MLPs (SwiGLU) is not supported")
    architecture = source.config.get("architecture", "")
    # test_vit3 has it without an argument.
    if arguments.get("pool_include_prefix") or architecture.startswith("test_vit3"):
        raise ValueError("pool_include_prefix is not supported")
    if "dist_token" in arrays:
        raise ValueError("a distilled DeiT, which has two heads, is not supported")
    pool = "cls" if "cls_token" in arrays else "mean"
    if "fc_norm.weight" in arrays:
        pool = "mean"
    if "attn_pool.latent" in arrays:
        pool = "map"
    if named := source.config.get("global_pool"):
        check_choice("global_pool", named, tuple(_POOLS))
        pool = _POOLS[named]
    depth = count_blocks(arrays, "blocks.")
    registers = arrays["reg_token"].shape[1] if "reg_token" in arrays else 0
    # A class token that isn't classified is one more register.
    num_registers = registers + ("cls_token" in arrays and pool != "cls")
    num_positions = arrays["pos_embed"].shape[1]
    num_others = registers + ("cls_token" in arrays)
    gelu = "gelu_tanh" if _GELU_TANH.match(architecture) else "gelu"
    return {
        "num_classes": len(arrays["head.weight"]) if "head.weight" in arrays else None,
        "patch_size": patch_size,
        "width": width,
        "depth": depth,
        **_find_heads(source, width, depth),
        "mlp_ratio": hidden / width,
        "activation": arguments.get("act_layer") or gelu,
        "pool": pool,
        "num_registers": num_registers,
        "layer_scale": 1.0 if "blocks.0.ls1.gamma" in arrays else None,
        "qkv_bias": "blocks.0.attn.qkv.bias" in arrays,
        "normalize_qk": "blocks.0.attn.q_norm.weight" in arrays,
        "norm_after_pool": "fc_norm.weight" in arrays,
        "position_std": 0.02,
        "channels": channels,
        "image_size": _image_size(source.config, patch_size, num_positions, num_others),
    }


def _image_size(
    config: Mapping[str, Any], patch_size: int, num_positions: int, num_others: int
) -> tuple[int, int] | None:
    """Find the size whose patches have these positions, with or without the tokens."""
    counts = (num_positions - num_others, num_positions)
    sides = [square_side(count) for count in counts]
    grids = [(side, side) for side in sides if side]
    told = config.get("pretrained_cfg", {}).get("input_size", (0, 0, 0))
    # Pixels that fill no patch are cut off.
    grid = (told[1] // patch_size, told[2] // patch_size)
    grids = [grid, *grids] if math.prod(grid) in counts else grids
    return (grids[0][0] * patch_size, grids[0][1] * patch_size) if grids else None


def _find_heads(source: Source, width: int, depth: int) -> dict[str, int]:
    """Find the number of heads; none where nothing tells two models of timm apart."""
    arguments = source.config.get("model_args", {})
    architecture = source.config.get("architecture", "")
    # The arrays of vit_base_patch16_gap, which has 16 heads, are like those of
    # vit_base_patch16_siglip_gap, which has 12.
    others = ("cls_token", "reg_token", "fc_norm.weight", "attn_pool.latent")
    is_like_both = not any(name in source.arrays for name in others)
    is_told = "num_heads" in arguments or "siglip" in architecture
    if (width, depth) == (768, 12) and is_like_both and not is_told:
        return {"num_heads": 16} if "patch16_gap" in architecture else {}
    return find_num_heads(width, depth, arguments)


def _read_arrays(arrays: Arrays, model: ViT, num_patches: int) -> Arrays:
    """Bring tokens and positions into our order: class token, patches, registers."""
    arrays = dict(arrays)
    arrays.pop("mask_token", None)  # DINOv2's, for masked training alone
    tokens = [arrays.pop(name) for name in ("cls_token", "reg_token") if name in arrays]
    empty = np.zeros((1, 0, model.width), np.float32)
    tokens_1TD = np.concatenate([empty, *tokens], axis=1)
    # The tokens' own positions come first, if they have any.
    position_1TD = arrays["pos_embed"]
    own_1TD, position_1TD = np.split(
        position_1TD, [position_1TD.shape[1] - num_patches], axis=1
    )
    if not own_1TD.shape[1]:
        own_1TD = np.zeros_like(tokens_1TD)
    if own_1TD.shape != tokens_1TD.shape:
        raise ValueError(
            f"image_size gives {num_patches} patches, which do not fit the "
            f"{arrays['pos_embed'].shape[1]} positions of the weights; load them "
            "without it, and resize them by `weights.fit`"
        )
    if model.pool == "cls":
        arrays["cls_token"] = tokens_1TD[:, :1]
        position_1TD = np.concatenate([own_1TD[:, :1], position_1TD], axis=1)
        tokens_1TD, own_1TD = tokens_1TD[:, 1:], own_1TD[:, 1:]
    if tokens_1TD.shape[1] != model.num_registers:
        raise ValueError(
            f"num_registers must be {tokens_1TD.shape[1]} with pool {model.pool!r}, "
            f"the number of tokens beside the patches, got {model.num_registers}"
        )
    if model.num_registers:
        arrays["reg_token"] = tokens_1TD + own_1TD
    return arrays | {"pos_embed": position_1TD}


def _write_arrays(arrays: Arrays, model: ViT) -> Arrays:
    """Give registers positions, as timm does by default; they are in the tokens."""
    if not model.num_registers:
        return arrays
    position_1TD = arrays["pos_embed"]
    zeros = np.zeros_like(arrays["reg_token"])
    first, rest = np.split(position_1TD, [int(model.pool == "cls")], axis=1)
    return arrays | {"pos_embed": np.concatenate([first, zeros, rest], axis=1)}


def _table(model: ViT) -> list[Entry]:
    entries = patch_embedding("embedding", "patch_embed.proj", model)
    entries.append(renamed("params/pos_embedding", "pos_embed"))
    if model.pool == "cls":
        entries.append(renamed("params/cls", "cls_token"))
    if model.num_registers:
        entries.append(renamed("params/registers", "reg_token"))
    for layer in range(model.depth):
        ours, theirs = f"params/encoder/block_{layer}", f"blocks.{layer}"
        qkv = [f"{ours}/attention/{name}" for name in ("query", "key", "value")]
        bias = f"{theirs}.attn.qkv.bias" if model.qkv_bias else None
        entries += fused(qkv, f"{theirs}.attn.qkv.weight", bias)
        if model.normalize_qk:
            entries += norm(f"{ours}/attention/query_norm", f"{theirs}.attn.q_norm")
            entries += norm(f"{ours}/attention/key_norm", f"{theirs}.attn.k_norm")
        entries += dense(f"{ours}/attention/out", f"{theirs}.attn.proj")
        entries += dense(f"{ours}/mlp/hidden", f"{theirs}.mlp.fc1")
        entries += dense(f"{ours}/mlp/out", f"{theirs}.mlp.fc2")
        entries += norm(f"{ours}/attention_norm", f"{theirs}.norm1")
        entries += norm(f"{ours}/mlp_norm", f"{theirs}.norm2")
        if model.layer_scale is not None:
            entries.append(renamed(f"{ours}/attention_scale", f"{theirs}.ls1.gamma"))
            entries.append(renamed(f"{ours}/mlp_scale", f"{theirs}.ls2.gamma"))
    if model.pool == "map":
        entries += _attention_pool("params/pool", "attn_pool")
    if model.norm_after_pool:
        entries += norm("params/norm", "fc_norm")
    else:
        entries += norm("params/encoder/norm", "norm")
    if model.num_classes is not None:
        entries += dense("params/head", "head")
    return entries


def _attention_pool(ours: str, theirs: str) -> list[Entry]:
    key_value = [f"{ours}/attention/key", f"{ours}/attention/value"]
    return [
        renamed(f"{ours}/probe", f"{theirs}.latent"),
        *dense(f"{ours}/attention/query", f"{theirs}.q"),
        *fused(key_value, f"{theirs}.kv.weight", f"{theirs}.kv.bias"),
        *dense(f"{ours}/attention/out", f"{theirs}.proj"),
        *norm(f"{ours}/norm", f"{theirs}.norm"),
        *dense(f"{ours}/mlp/hidden", f"{theirs}.mlp.fc1"),
        *dense(f"{ours}/mlp/out", f"{theirs}.mlp.fc2"),
    ]


def _check(model: ViT) -> None:
    check_plain(
        model,
        "timm",
        pool=("cls", "mean", "map"),
        num_registers=(),
        layer_scale=(),
        qkv_bias=(),
        normalize_qk=(False, True),
        norm_after_pool=(False, True),
        activation=(),
    )


TIMM = Format(
    library="timm",
    recognizes=_recognizes,
    read_fields=_read_fields,
    read_arrays=_read_arrays,
    table=_table,
    write_arrays=_write_arrays,
    check=_check,
)


def timm_config(model: ViT, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """Describe a model by the arguments of timm's `VisionTransformer`."""
    height, width, channels = image_shape
    return {
        "img_size": [height, width],
        "patch_size": model.patch_size,
        "in_chans": channels,
        "num_classes": model.num_classes or 0,
        "global_pool": {v: k for k, v in _POOLS.items()}[model.pool],
        "embed_dim": model.width,
        "depth": model.depth,
        "num_heads": model.num_heads,
        # timm rounds down: from the ratio itself it could make one feature less.
        "mlp_ratio": model.mlp_ratio
        and (round(model.mlp_ratio * model.width) + 0.5) / model.width,
        "class_token": model.pool == "cls",
        "reg_tokens": model.num_registers,
        # For 0 timm makes no LayerScale; the value is only that of the start.
        "init_values": None if model.layer_scale is None else model.layer_scale or 1.0,
        "qkv_bias": model.qkv_bias,
        "qk_norm": model.normalize_qk,
        "fc_norm": model.norm_after_pool,
        "act_layer": model.activation,
    }
