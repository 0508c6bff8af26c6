"""Capture what a normal forward pass computes: attention weights, pooling weights."""

import fnmatch
import itertools
import re
from typing import Any

import chex
import flax.linen as nn
import flax.traverse_util
import jax

from vit_jax.dtypes import float32_or_wider

Array = jax.Array


def attention_weights(
    model: nn.Module,
    variables: Any,
    *inputs: Array | None,
    where: str = "*encoder/block*/attention",
    **arguments: Any,
) -> list[Array]:
    """Capture the attention weights of every layer in one forward pass.

    >>> from vit_jax import ViT
    >>> model = ViT(10, patch_size=4, width=8, depth=1, num_heads=2)
    >>> image_BHWC = jax.numpy.ones((1, 8, 8, 1))
    >>> variables = model.init(jax.random.key(0), image_BHWC)
    >>> [weights.shape for weights in attention_weights(model, variables, image_BHWC)]
    [(1, 2, 5, 5)]

    Args:
        model: a model with `MultiHeadAttention`, such as `ViT`.
        variables: its variables; earlier `intermediates` are ignored.
        *inputs: arguments of the model, normalised images for instance.
        where: pattern for the paths of the attention modules, by default those of an
            encoder. "*decoder/block_*/cross_attention" selects a decoder's,
            "block_*/attention" those of an `Encoder` alone.
        **arguments: of the model, by name: a mask for instance.

    Returns:
        weights_BNTS of each layer, the first layer first; empty for a model without
        attention. A layer that is called several times has one entry for each call.

    Raises:
        ValueError: if the model has attention, but none that matches the pattern.
    """
    chex.assert_shape([x for x in inputs if x is not None], (None, ...))
    leaves = _capture(model, variables, *inputs, **arguments)
    # The path of each attention module, "" if the model is one itself → its calls.
    modules = {
        path.removesuffix("attention_weights").rstrip("/"): calls
        for path, calls in leaves.items()
        if path.endswith("attention_weights")
    }
    chosen = fnmatch.filter(modules, where)
    if modules and not chosen:
        known = ", ".join(path or "''" for path in modules)
        raise ValueError(f"where must match one of {known}, got {where!r}")
    calls = [call for path in sorted(chosen, key=_by_number) for call in modules[path]]
    # The blocks of an encoder with `scan` are captured as one, with a leading axis L.
    by_layer = [list(call) if call.ndim == 5 else [call] for call in calls]
    weights = list(itertools.chain(*by_layer))
    chex.assert_rank(weights, 4)
    return weights


def pool_weights(model: nn.Module, variables: Any, image_BHWC: Array) -> Array:
    """Compute the weight with which each patch enters what a ViT classifies.

    >>> from vit_jax import ViT
    >>> model = ViT(10, patch_size=4, width=8, depth=1, num_heads=2, pool="sequence")
    >>> image_BHWC = jax.numpy.ones((1, 8, 8, 1))
    >>> variables = model.init(jax.random.key(0), image_BHWC)
    >>> pool_weights(model, variables, image_BHWC).shape
    (1, 4)

    Args:
        model: a `ViT` with the pool "sequence" or "map".
        variables: its variables.
        image_BHWC: normalised images.

    Returns:
        weight_BT: sums to 1 over the patches; of "map" the mean over the heads; float32
        or wider.

    Raises:
        ValueError: if the model has no such pool.
    """
    chex.assert_rank(image_BHWC, 4)
    leaves = _capture(model, variables, image_BHWC)
    if "pool/pool_weights" in leaves:
        weight_BT = leaves["pool/pool_weights"][0]
    elif "pool/attention/attention_weights" in leaves:
        weight_BN1T = leaves["pool/attention/attention_weights"][0]
        wide = float32_or_wider(weight_BN1T.dtype)
        weight_BT = weight_BN1T.astype(wide).mean(axis=1)[:, 0]
    else:
        raise ValueError("model must have the pool 'sequence' or 'map'")
    chex.assert_shape(weight_BT, (image_BHWC.shape[0], None))
    return weight_BT


def _capture(
    model: nn.Module, variables: Any, *inputs: Array | None, **arguments: Any
) -> dict[str, Any]:
    """Call a model, and return its intermediates by their paths."""
    variables = {k: v for k, v in variables.items() if k != "intermediates"}
    captured: Any = model.apply(
        variables, *inputs, **arguments, mutable=["intermediates"]
    )[1]
    return flax.traverse_util.flatten_dict(captured.get("intermediates", {}), sep="/")


def _by_number(path: str) -> list[str | int]:
    """Return a sort key that puts block_10 behind block_9."""
    return [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", path)]
