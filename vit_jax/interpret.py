"""Look into a trained model: what its tokens attend to."""

import fnmatch
import re
from typing import Any

import chex
import flax.linen as nn
import flax.traverse_util
import jax

Array = jax.Array


def attention_weights(
    model: nn.Module,
    variables: Any,
    *inputs: Array,
    where: str = "*encoder/block_*/attention",
) -> list[Array]:
    """Capture the attention weights of every layer in one forward pass.

    Args:
        model: a model made of `MultiHeadAttention`, such as `ViT`.
        variables: its variables.
        *inputs: what the model is called with, normalised images for instance.
        where: which of its attention modules, by a pattern for their paths; an
            encoder's by default, "decoder/block_*/cross_attention" for a decoder's.

    Returns:
        weights_BNTS of each layer, the first layer first; empty for a model without
        such modules. Every row sums to 1.
    """
    captured: Any = model.apply(
        variables, *inputs, train=False, mutable=["intermediates"]
    )[1]
    leaves: dict[str, Any] = flax.traverse_util.flatten_dict(
        captured.get("intermediates", {}), sep="/"
    )
    paths = fnmatch.filter(leaves, f"{where}/attention_weights")
    weights = [leaves[path][0] for path in sorted(paths, key=_by_number)]
    chex.assert_rank(weights, 4)
    return weights


def _by_number(path: str) -> list[str | int]:
    """Sort block_10 behind block_9."""
    return [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", path)]
