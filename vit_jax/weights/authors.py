"""The authors' layouts, .npz: google-research/vision_transformer's and big_vision's.

Their kernels of query, key and value have the axes (D, N, K), those of the attention's
output (N, K, D), and the embedding's is that of a convolution, (P, P, C, D).
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.vit import ViT
from vit_jax.weights.format import (
    Arrays,
    Format,
    check_plain,
    count_blocks,
    square_side,
)
from weight_files import Entry, Source, renamed

_BLOCK = "Transformer/encoderblock_"
# Flax once numbered the layers of a block through, later for each kind.
_NUMBERED_BY_KIND = {
    "MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1",
    "LayerNorm_1": "LayerNorm_2",
    "MlpBlock_0": "MlpBlock_3",
}
_POSITIONS = "Transformer/posembed_input/pos_embedding"


def _recognizes(arrays: Mapping[str, Any]) -> bool:
    names = {name.removeprefix("params/") for name in arrays}
    return {"embedding/kernel", "Transformer/encoder_norm/scale"} <= names


def _simplify(arrays: Arrays) -> Arrays:
    """Give big_vision's arrays the names of google-research/vision_transformer."""
    simple: Arrays = {}
    for name, array in arrays.items():
        name = name.removeprefix("params/")
        if name == "pos_embedding":
            name = _POSITIONS
        if name.startswith("Transformer/encoderblock/"):  # scanned: a leading axis L
            rest = name.removeprefix("Transformer/encoderblock/")
            simple |= {f"{_BLOCK}{i}/{rest}": part for i, part in enumerate(array)}
        else:
            simple[name] = array
    if not any("MlpBlock_0" in name for name in simple if name.startswith(_BLOCK)):
        return simple
    kinds = re.compile(rf"(?<=^{_BLOCK})(\d+)/({'|'.join(_NUMBERED_BY_KIND)})/")
    return {
        kinds.sub(lambda m: f"{m[1]}/{_NUMBERED_BY_KIND[m[2]]}/", name): array
        for name, array in simple.items()
    }


def _read_fields(source: Source) -> dict[str, Any]:
    arrays = _simplify(source.arrays)
    patch_size, _, channels, width = arrays["embedding/kernel"].shape
    query = arrays[f"{_BLOCK}0/MultiHeadDotProductAttention_1/query/kernel"]
    hidden = arrays[f"{_BLOCK}0/MlpBlock_3/Dense_0/kernel"]
    pool = "cls" if "cls" in arrays else "mean"
    pool = "map" if "MAPHead_0/probe" in arrays else pool
    logits = arrays.get("head/kernel")
    features = arrays.get("pre_logits/kernel")
    side = None
    if _POSITIONS in arrays:
        num_positions = arrays[_POSITIONS].shape[1]
        side = square_side(num_positions - (pool == "cls")) or square_side(
            num_positions
        )
    return {
        "num_classes": None if logits is None else logits.shape[1],
        "patch_size": patch_size,
        "width": width,
        "depth": count_blocks(arrays, _BLOCK),
        "num_heads": query.shape[1],
        "mlp_ratio": hidden.shape[1] / width,
        "pool": pool,
        "representation_size": None if features is None else features.shape[1],
        "position_embedding": "learned" if _POSITIONS in arrays else "sincos2d",
        "position_std": 0.02,
        "initialization": "authors",
        "channels": channels,
        "image_size": side and (side * patch_size, side * patch_size),
        "mean": (0.5,) * channels,
        "std": (0.5,) * channels,
        # As the authors evaluate; big_vision crops, each model in its own way.
        **({} if _is_of_big_vision(source.arrays) else {"resize": "stretch"}),
    }


def _is_of_big_vision(arrays: Mapping[str, Any]) -> bool:
    """Tell by the place of the position embedding."""
    return not any(name.endswith(_POSITIONS) for name in arrays)


def _read_arrays(arrays: Arrays, model: ViT, num_patches: int) -> Arrays:
    arrays = _simplify(arrays)
    position_1TD = arrays.get(_POSITIONS)
    if model.pool == "cls" and position_1TD is not None:
        missing = num_patches + 1 - position_1TD.shape[1]
        if missing == 1:  # big_vision adds the class token behind the positions
            arrays[_POSITIONS] = np.pad(position_1TD, [(0, 0), (1, 0), (0, 0)])
    return arrays


def _dense(ours: str, theirs: str) -> list[Entry]:
    return [renamed(f"{ours}/{x}", f"{theirs}/{x}") for x in ("kernel", "bias")]


def _norm(ours: str, theirs: str) -> list[Entry]:
    return [renamed(f"{ours}/{x}", f"{theirs}/{x}") for x in ("scale", "bias")]


def _heads(ours: str, theirs: str, num_heads: int) -> list[Entry]:
    """Match a projection to heads, (D, N·K), with (D, N, K)."""
    return [
        Entry(
            (f"{ours}/kernel",),
            f"{theirs}/kernel",
            lambda kernel: [kernel.reshape(len(kernel), -1)],
            lambda kernel: kernel.reshape(len(kernel), num_heads, -1),
        ),
        Entry(
            (f"{ours}/bias",),
            f"{theirs}/bias",
            lambda bias: [bias.reshape(-1)],
            lambda bias: bias.reshape(num_heads, -1),
        ),
    ]


def _attention(ours: str, theirs: str, num_heads: int) -> list[Entry]:
    entries = [
        entry
        for name in ("query", "key", "value")
        for entry in _heads(f"{ours}/{name}", f"{theirs}/{name}", num_heads)
    ]
    return [
        *entries,
        Entry(
            (f"{ours}/out/kernel",),
            f"{theirs}/out/kernel",
            lambda kernel: [kernel.reshape(-1, kernel.shape[-1])],
            lambda kernel: kernel.reshape(num_heads, -1, kernel.shape[-1]),
        ),
        renamed(f"{ours}/out/bias", f"{theirs}/out/bias"),
    ]


def _table(model: ViT) -> list[Entry]:
    patch, heads = model.patch_size, model.num_heads
    entries = [
        Entry(
            ("params/embedding/kernel",),
            "embedding/kernel",
            lambda kernel: [kernel.reshape(-1, kernel.shape[-1])],
            lambda kernel: kernel.reshape(patch, patch, -1, kernel.shape[-1]),
        ),
        renamed("params/embedding/bias", "embedding/bias"),
    ]
    if model.position_embedding == "learned":
        entries.append(renamed("params/pos_embedding", _POSITIONS))
    if model.pool == "cls":
        entries.append(renamed("params/cls", "cls"))
    for layer in range(model.depth):
        ours, theirs = f"params/encoder/block_{layer}", f"{_BLOCK}{layer}"
        attention = f"{theirs}/MultiHeadDotProductAttention_1"
        entries += _attention(f"{ours}/attention", attention, heads)
        entries += _norm(f"{ours}/attention_norm", f"{theirs}/LayerNorm_0")
        entries += _norm(f"{ours}/mlp_norm", f"{theirs}/LayerNorm_2")
        entries += _dense(f"{ours}/mlp/hidden", f"{theirs}/MlpBlock_3/Dense_0")
        entries += _dense(f"{ours}/mlp/out", f"{theirs}/MlpBlock_3/Dense_1")
    entries += _norm("params/encoder/norm", "Transformer/encoder_norm")
    if model.pool == "map":
        ours, theirs = "params/pool", "MAPHead_0"
        attention = f"{theirs}/MultiHeadDotProductAttention_0"
        entries.append(renamed(f"{ours}/probe", f"{theirs}/probe"))
        entries += _attention(f"{ours}/attention", attention, heads)
        entries += _norm(f"{ours}/norm", f"{theirs}/LayerNorm_0")
        entries += _dense(f"{ours}/mlp/hidden", f"{theirs}/MlpBlock_0/Dense_0")
        entries += _dense(f"{ours}/mlp/out", f"{theirs}/MlpBlock_0/Dense_1")
    for ours, theirs, size in (
        ("pre_logits", "pre_logits", model.representation_size),
        ("head", "head", model.num_classes),
    ):
        if size is not None:
            entries += _dense(f"params/{ours}", theirs)
    return entries


def _check(model: ViT) -> None:
    check_plain(
        model,
        "the authors' layout",
        representation_size=(),
        activation=("gelu_tanh",),
    )


AUTHORS = Format(
    library="google-research/vision_transformer or big_vision",
    recognizes=_recognizes,
    read_fields=_read_fields,
    read_arrays=_read_arrays,
    table=_table,
    check=_check,
)
