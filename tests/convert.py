"""Convert PyTorch's parameters to this project's layout.

Each function only renames, splits and transposes, so it converts gradients as well.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from resnet_jax.resnet import ResNet
from resnet_jax.weights import torch
from weight_files import to_ours

State = dict[str, np.ndarray]
Tree = dict[str, Any]


def below(state: State, prefix: str) -> State:
    """Select the entries of a submodule."""
    prefix = f"{prefix}."
    return {
        name.removeprefix(prefix): array
        for name, array in state.items()
        if name.startswith(prefix)
    }


def layer(state: State) -> Tree:
    """Convert the parameters of one linear, convolution or normalisation layer."""
    weight = state["weight"]
    if weight.ndim == 1:
        params = {"scale": weight}
    elif weight.ndim == 2:
        params = {"kernel": weight.T}
    else:
        params = {"kernel": weight.transpose(2, 3, 1, 0)}  # OIHW → HWIO
    return params | ({"bias": state["bias"]} if "bias" in state else {})


def multi_head_attention(state: State) -> Tree:
    """Convert `torch.nn.MultiheadAttention`, which stacks query, key and value."""
    weights = np.split(state["in_proj_weight"], 3)
    biases = np.split(state["in_proj_bias"], 3)
    params = {
        name: layer({"weight": weight, "bias": bias})
        for name, weight, bias in zip(
            ("query", "key", "value"), weights, biases, strict=True
        )
    }
    return params | {"out": layer(below(state, "out_proj"))}


def encoder_block(state: State) -> Tree:
    """Convert `torch.nn.TransformerEncoderLayer`."""
    return {
        "attention": multi_head_attention(below(state, "self_attn")),
        "attention_norm": layer(below(state, "norm1")),
        "mlp": _mlp(state),
        "mlp_norm": layer(below(state, "norm2")),
    }


def decoder_block(state: State) -> Tree:
    """Convert `torch.nn.TransformerDecoderLayer`."""
    return {
        "attention": multi_head_attention(below(state, "self_attn")),
        "attention_norm": layer(below(state, "norm1")),
        "cross_attention": multi_head_attention(below(state, "multihead_attn")),
        "cross_attention_norm": layer(below(state, "norm2")),
        "mlp": _mlp(state),
        "mlp_norm": layer(below(state, "norm3")),
    }


def transformer(state: State) -> Tree:
    """Convert `torch.nn.Transformer`."""
    return {
        "encoder": _stack(below(state, "encoder"), encoder_block),
        "decoder": _stack(below(state, "decoder"), decoder_block),
    }


def _mlp(state: State) -> Tree:
    return {
        "hidden": layer(below(state, "linear1")),
        "out": layer(below(state, "linear2")),
    }


def _stack(state: State, convert_block: Callable[[State], Tree]) -> Tree:
    """Convert `torch.nn.TransformerEncoder` or `torch.nn.TransformerDecoder`."""
    indices = {name.split(".")[1] for name in state if name.startswith("layers.")}
    blocks = {
        f"block_{index}": convert_block(below(state, f"layers.{index}"))
        for index in indices
    }
    return {"norm": layer(below(state, "norm"))} | blocks


def vit(state: State) -> Tree:
    """Convert `benchmarks.torch_models.ViT`; its convolution becomes a dense layer."""
    embedding = layer(below(state, "embedding"))
    kernel_PPCD = embedding["kernel"]
    embedding["kernel"] = kernel_PPCD.reshape(-1, kernel_PPCD.shape[-1])
    params = {
        "embedding": embedding,
        "encoder": _stack(below(state, "encoder"), encoder_block),
        "head": layer(below(state, "head")),
    }
    for name in ("cls", "pos_embedding"):
        if name in state:
            params[name] = state[name]
    if "pre_logits.weight" in state:
        params["pre_logits"] = layer(below(state, "pre_logits"))
    return params


def conv_stem(state: State) -> Tree:
    """Convert convolutions of a `torch.nn.Sequential`, three layers apart."""
    return {f"conv_{i}": layer(below(state, str(3 * i))) for i in range(2)}


def sequence_pool(state: State) -> Tree:
    """Convert `make_golden.SequencePool`."""
    return {"score": layer(below(state, "score"))}


def attention_pool(state: State) -> Tree:
    """Convert `make_golden.AttentionPool`."""
    return {
        "probe": state["probe"],
        "attention": multi_head_attention(below(state, "attention")),
        "norm": layer(below(state, "norm")),
        "mlp": _mlp(state),
    }


def resnet_block(state: State) -> tuple[Tree, Tree]:
    """Convert a block of `benchmarks.torch_models`.

    Returns:
        params and batch_stats, the latter empty for gradients.
    """
    names = {"downsample.0": "shortcut_conv", "downsample.1": "shortcut_norm"}
    return _with_statistics(state, lambda name: names.get(name) or _norm(name))


def resnet(model: ResNet, state: State) -> tuple[Tree, Tree]:
    """Convert `benchmarks.torch_models.ResNet`.

    Returns:
        params and batch_stats, the latter empty for gradients.
    """
    table = [entry for entry in torch.table(model) if entry.theirs in state]
    variables = to_ours(table, state)
    return variables.get("params", {}), variables.get("batch_stats", {})


def _norm(name: str) -> str:
    return name.replace("bn", "norm")


def _with_statistics(state: State, rename: Callable[[str], str]) -> tuple[Tree, Tree]:
    """Convert convolutions, norms and linear layers, none inside another."""
    params, batch_stats = {}, {}
    for name in {name.rpartition(".")[0] for name in state}:
        arrays = below(state, name)
        if "weight" in arrays:
            params[rename(name)] = layer(arrays)
        if "running_mean" in arrays:
            batch_stats[rename(name)] = {
                "mean": arrays["running_mean"],
                "var": arrays["running_var"],
            }
    return params, batch_stats
