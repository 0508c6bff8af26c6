"""Layer-wise decay of the learning rate, for fine-tuning a ViT."""

import re
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

PyTree = Any

# Names of the parameters below the first block; all others are above the last.
_BELOW = ("embedding", "stem", "cls", "pos_embedding", "registers")


def scale_by_layer(decay: float) -> optax.GradientTransformation:
    """Scale each update by `layer_factors`."""

    def init(params: PyTree) -> optax.EmptyState:
        _depth(params)
        return optax.EmptyState()

    def update(updates: PyTree, state: Any, params: PyTree = None) -> Any:
        del params
        factors = layer_factors(updates, decay=decay)
        return jax.tree.map(jnp.multiply, updates, factors), state

    return optax.GradientTransformation(init, update)


def layer_factors(params: PyTree, *, decay: float) -> PyTree:
    """Compute each parameter's factor of the learning rate in a ViT.

    It is `decay` to the power of the number of layers above. The layers are the
    embedding, each block, and the head with what is between it and the last block.

    Args:
        params: of a ViT.
        decay: the factor from one layer to the one below it.

    Returns:
        A tree of scalars, and of arrays (L, 1, ...) for the blocks of an encoder with
        `scan`.

    Raises:
        ValueError: if there is no encoder with blocks.

    References: BEiT, arXiv:2106.08254, section 3.1, and its public code.
    """
    chex.assert_tree_has_only_ndarrays(params)
    depth = _depth(params)

    def factor(path: Any, param: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        block = re.match(r"encoder/block_(\d+)/", name)
        layer: Any = depth + 1
        if name.startswith("encoder/blocks/"):
            layer = jnp.expand_dims(jnp.arange(1, depth + 1), range(1, param.ndim))
        elif block is not None:
            layer = int(block[1]) + 1
        elif name.split("/")[0] in _BELOW:
            layer = 0
        return jnp.float32(decay) ** (depth + 1 - layer)

    return jax.tree_util.tree_map_with_path(factor, params)


def _depth(params: PyTree) -> int:
    """Count the encoder's blocks."""
    encoder = params.get("encoder", {})
    if "blocks" in encoder:
        return len(jax.tree.leaves(encoder["blocks"])[0])
    depth = sum(name.startswith("block_") for name in encoder)
    if depth == 0:
        raise ValueError("config.optimizer.layer_decay needs a ViT, which has layers")
    return depth
