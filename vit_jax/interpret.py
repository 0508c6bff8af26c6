"""Look into a trained model: what its tokens attend to."""

from typing import Any

import chex
import flax.linen as nn
import jax

Array = jax.Array


def attention_weights(
    model: nn.Module, variables: Any, image_BHWC: Array
) -> list[Array]:
    """Capture the attention weights of every layer in one forward pass.

    Args:
        model: a model made of `MultiHeadAttention`, such as `ViT`.
        variables: its variables.
        image_BHWC: normalised images.

    Returns:
        weights_BNTT of each layer, the first layer first; empty for a model without
        attention. Every row sums to 1.
    """
    chex.assert_rank(image_BHWC, 4)
    captured: Any = model.apply(
        variables, image_BHWC, train=False, mutable=["intermediates"]
    )[1]
    blocks = captured.get("intermediates", {})
    names = sorted(blocks, key=lambda name: int(name.rpartition("_")[2]))
    return [blocks[name]["attention"]["attention_weights"][0] for name in names]
