"""The layout of Hugging Face's `ViTForImageClassification`."""

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
from weight_files import Entry, Source, dense, norm, renamed

_EMBEDDINGS = "vit.embeddings"
_BLOCK = "vit.encoder.layer."
# As transformers 5 calls them in memory; in files they have the older names.
_NEWER = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


def _recognizes(arrays: Mapping[str, Any]) -> bool:
    return any(
        name.endswith("embeddings.patch_embeddings.projection.weight")
        for name in arrays
    )


def _simplify(arrays: Arrays) -> Arrays:
    """Give the arrays the names in files of `ViTForImageClassification`."""
    newer = re.compile(rf"^vit\.layers\.(\d+)\.({'|'.join(_NEWER)})\.")
    simple: Arrays = {}
    for name, array in arrays.items():
        # `ViTModel` alone has no prefix, and a pooler that isn't part of a ViT.
        name = name if name.startswith(("vit.", "classifier.")) else f"vit.{name}"
        if name.startswith("vit.pooler."):
            continue
        name = newer.sub(lambda m: f"{_BLOCK}{m[1]}.{_NEWER[m[2]]}.", name)
        simple[re.sub(r"^vit\.layers\.", _BLOCK, name)] = array
    return simple


def _read_fields(source: Source) -> dict[str, Any]:
    arrays, config = _simplify(source.arrays), source.config
    kernel = arrays[f"{_EMBEDDINGS}.patch_embeddings.projection.weight"]
    width, channels, patch_size, _ = kernel.shape
    activation = config.get("hidden_act", "gelu")
    if activation not in _ACTIVATIONS:
        raise ValueError(
            f"config.json has the hidden_act {activation!r}, which is not supported; "
            f"supported are {', '.join(_ACTIVATIONS)}"
        )
    logits = arrays.get("classifier.weight")
    hidden = arrays[f"{_BLOCK}0.intermediate.dense.weight"]
    side = square_side(arrays[f"{_EMBEDDINGS}.position_embeddings"].shape[1] - 1)
    depth = count_blocks(arrays, _BLOCK)
    told = {"num_heads": config.get("num_attention_heads")}
    return {
        **find_num_heads(width, depth, told),
        "num_classes": None if logits is None else len(logits),
        "patch_size": patch_size,
        "width": width,
        "depth": depth,
        "mlp_ratio": len(hidden) / width,
        "qkv_bias": f"{_BLOCK}0.attention.attention.query.bias" in arrays,
        "activation": _ACTIVATIONS[activation],
        "norm_epsilon": config.get("layer_norm_eps", 1e-12),
        "position_std": 0.02,
        "channels": channels,
        "image_size": side and (side * patch_size, side * patch_size),
    }


def _table(model: ViT) -> list[Entry]:
    projection = f"{_EMBEDDINGS}.patch_embeddings.projection"
    entries = patch_embedding("embedding", projection, model)
    entries.append(renamed("params/cls", f"{_EMBEDDINGS}.cls_token"))
    entries.append(
        renamed("params/pos_embedding", f"{_EMBEDDINGS}.position_embeddings")
    )
    for layer in range(model.depth):
        ours, theirs = f"params/encoder/block_{layer}", f"{_BLOCK}{layer}"
        for name in ("query", "key", "value"):
            projection = f"{theirs}.attention.attention.{name}"
            entries += dense(
                f"{ours}/attention/{name}", projection, bias=model.qkv_bias
            )
        entries += dense(f"{ours}/attention/out", f"{theirs}.attention.output.dense")
        entries += dense(f"{ours}/mlp/hidden", f"{theirs}.intermediate.dense")
        entries += dense(f"{ours}/mlp/out", f"{theirs}.output.dense")
        entries += norm(f"{ours}/attention_norm", f"{theirs}.layernorm_before")
        entries += norm(f"{ours}/mlp_norm", f"{theirs}.layernorm_after")
    entries += norm("params/encoder/norm", "vit.layernorm")
    if model.num_classes is not None:
        entries += dense("params/head", "classifier")
    return entries


HUGGINGFACE = Format(
    library="Hugging Face",
    recognizes=_recognizes,
    read_fields=_read_fields,
    read_arrays=lambda arrays, model, num_patches: _simplify(arrays),
    table=_table,
    check=lambda model: check_plain(
        model, "Hugging Face", norm_epsilon=(), activation=(), qkv_bias=()
    ),
)


def huggingface_config(model: ViT, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """Make the content of config.json, without the classes."""
    height, width, channels = image_shape
    activations = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu"}
    return {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.num_heads,
        "intermediate_size": round((model.mlp_ratio or 0) * model.width),
        "hidden_act": activations[model.activation],
        "hidden_dropout_prob": model.dropout_rate,
        "attention_probs_dropout_prob": model.attention_dropout_rate,
        "layer_norm_eps": model.norm_epsilon,
        "image_size": height if height == width else [height, width],
        "patch_size": model.patch_size,
        "num_channels": channels,
        "qkv_bias": model.qkv_bias,
        "encoder_stride": model.patch_size,
    }
