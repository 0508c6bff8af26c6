"""Read and write `torch.nn.Transformer` and `torch.nn.TransformerEncoder`."""

from typing import Any

import jax
import numpy as np

from vit_jax.transformer import Encoder, Transformer
from vit_jax.weights.format import count_blocks
from weight_files import (
    Entry,
    Source,
    Weights,
    dense,
    fused,
    norm,
    open_source,
    to_ours,
    to_theirs,
)

# PyTorch's epsilon of LayerNorm.
_EPSILON = 1e-5


def load_transformer(
    source: Weights, *, num_heads: int, **fields: Any
) -> tuple[Transformer, dict[str, Any]]:
    """Load the weights of a `torch.nn.Transformer`.

    Args:
        source: see `weight_files.open_source`.
        num_heads: its `nhead`, which the weights don't tell.
        **fields: of `Transformer`; `norm="pre"` for PyTorch's `norm_first=True`, and
            `activation`, if it is not ReLU. Masks are arguments of the call here.

    Returns:
        The model, without dropout unless given, and its variables.

    Raises:
        ValueError: if the source can't be read or is of something else.
    """
    opened = open_source(source)
    names = opened.arrays
    model = Transformer(
        num_heads=num_heads,
        encoder_depth=count_blocks(names, "encoder.layers."),
        decoder_depth=count_blocks(names, "decoder.layers."),
        **_fields(opened, "encoder.", {"causal": False} | fields),
    )
    variables = _read(opened, _transformer(model), "torch.nn.Transformer")
    _check(model)
    return model, variables


def load_encoder(
    source: Weights, *, num_heads: int, **fields: Any
) -> tuple[Encoder, dict[str, Any]]:
    """Load the weights of a `torch.nn.TransformerEncoder`; see `load_transformer`."""
    opened = open_source(source)
    model = Encoder(
        num_heads=num_heads,
        depth=count_blocks(opened.arrays, "layers."),
        **_fields(opened, "", {"norm": "post", "activation": jax.nn.relu} | fields),
    )
    variables = _read(
        opened, _stack("params", "", model), "torch.nn.TransformerEncoder"
    )
    _check(model)
    return model, variables


def transformer_state(
    model: Transformer | Encoder, variables: Any
) -> dict[str, np.ndarray]:
    """Turn variables into the state dict of the module in PyTorch, as numpy arrays.

    Raises:
        ValueError: for a model that PyTorch cannot express.
    """
    _check(model)
    if isinstance(model, Transformer) and not model.has_final_norm:
        raise ValueError("torch.nn.Transformer has final norms, use final_norm=True")
    is_encoder = isinstance(model, Encoder)
    table = _stack("params", "", model) if is_encoder else _transformer(model)
    return to_theirs(table, jax.device_get(variables))


def _check(model: Transformer | Encoder) -> None:
    """Raise ValueError for a field whose value PyTorch's modules do not have."""
    wrong = {
        "norm": model.norm is None,
        "mlp_dim": model.mlp_dim is None,
        "residual": not model.residual,
        "qkv_bias": not model.qkv_bias,
        "normalize_qk": model.normalize_qk,
        "layer_scale": model.layer_scale is not None,
        "scan": getattr(model, "scan", False),
    }
    for field, is_wrong in wrong.items():
        if is_wrong:
            raise ValueError(
                f"torch.nn has no Transformer with {field} {getattr(model, field)!r}"
            )


def _fields(source: Source, prefix: str, given: dict[str, Any]) -> dict[str, Any]:
    # A Transformer may have a decoder alone.
    names = (f"{part}layers.0.linear1.weight" for part in (prefix, "decoder."))
    found = [source.arrays[name] for name in names if name in source.arrays]
    hidden = found[0] if found else None
    return {
        "mlp_dim": None if hidden is None else len(hidden),
        "final_norm": f"{prefix}norm.weight" in source.arrays,
        "dropout_rate": 0.0,
        "norm_epsilon": _EPSILON,
    } | given


def _read(source: Source, table: list[Entry], kind: str) -> dict[str, Any]:
    try:
        return to_ours(table, source.arrays)
    except ValueError as error:
        raise ValueError(f"weights {source.name!r} are no {kind}: {error}") from error


def _transformer(model: Transformer) -> list[Entry]:
    encoder, decoder = "params/encoder", "params/decoder"
    entries = [
        entry
        for layer in range(model.encoder_depth)
        for entry in _block(f"{encoder}/block_{layer}", f"encoder.layers.{layer}")
    ]
    for layer in range(model.decoder_depth):
        ours, theirs = f"{decoder}/block_{layer}", f"decoder.layers.{layer}"
        entries += _block(ours, theirs, has_memory=True)
    if model.has_final_norm:
        entries += norm(f"{encoder}/norm", "encoder.norm")
        entries += norm(f"{decoder}/norm", "decoder.norm")
    return entries


def _stack(ours: str, theirs: str, model: Encoder) -> list[Entry]:
    entries = [
        entry
        for layer in range(model.depth)
        for entry in _block(f"{ours}/block_{layer}", f"{theirs}layers.{layer}")
    ]
    return entries + (norm(f"{ours}/norm", f"{theirs}norm") if model.final_norm else [])


def _block(ours: str, theirs: str, *, has_memory: bool = False) -> list[Entry]:
    """Match a layer of the encoder, or of the decoder."""
    norms = ["attention_norm", "mlp_norm"]
    attentions = {"attention": "self_attn"}
    if has_memory:
        norms.insert(1, "cross_attention_norm")
        attentions["cross_attention"] = "multihead_attn"
    entries = [
        entry
        for index, name in enumerate(norms, start=1)
        for entry in norm(f"{ours}/{name}", f"{theirs}.norm{index}")
    ]
    for name, attention in attentions.items():
        qkv = [f"{ours}/{name}/{part}" for part in ("query", "key", "value")]
        attention = f"{theirs}.{attention}"
        entries += fused(
            qkv, f"{attention}.in_proj_weight", f"{attention}.in_proj_bias"
        )
        entries += dense(f"{ours}/{name}/out", f"{attention}.out_proj")
    entries += dense(f"{ours}/mlp/hidden", f"{theirs}.linear1")
    return entries + dense(f"{ours}/mlp/out", f"{theirs}.linear2")
