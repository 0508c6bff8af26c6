"""Look into a trained model: what its tokens attend to, and where they think they are.

All of it is computed from the weights of a normal forward pass.
"""

import fnmatch
import re
from collections.abc import Sequence
from typing import Any

import chex
import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.dtypes import float32_or_wider

Array = jax.Array


def attention_weights(
    model: nn.Module,
    variables: Any,
    *inputs: Array,
    where: str = "*encoder/block*/attention",
) -> list[Array]:
    """Capture the attention weights of every layer in one forward pass.

    Args:
        model: a model made of `MultiHeadAttention`, such as `ViT`.
        variables: its variables; `intermediates` captured before are left out.
        *inputs: what the model is called with, normalised images for instance.
        where: which of its attention modules, by a pattern for their paths; those of a
            part that is named encoder by default. "*decoder/block_*/cross_attention"
            are a decoder's, "block_*/attention" those of an `Encoder` alone.

    Returns:
        weights_BNTS of each layer, the first layer first; empty for a model without
        attention. Every row sums to 1. A layer that is called several times stands
        there as often, one call behind the other.

    Raises:
        ValueError: if the model has attention, but none by that pattern.
    """
    variables = {k: v for k, v in variables.items() if k != "intermediates"}
    captured: Any = model.apply(
        variables, *inputs, train=False, mutable=["intermediates"]
    )[1]
    leaves: dict[str, Any] = flax.traverse_util.flatten_dict(
        captured.get("intermediates", {}), sep="/"
    )
    all_paths = fnmatch.filter(leaves, "*attention_weights")
    paths = fnmatch.filter(all_paths, f"{where}/attention_weights")
    if all_paths and not paths:
        known = ", ".join(path.removesuffix("/attention_weights") for path in all_paths)
        raise ValueError(f"where must match one of {known}, got {where!r}")
    weights = []
    for path in sorted(paths, key=_by_number):
        for captured_layer in leaves[path]:  # one for each call
            # The blocks of an encoder with `scan` are captured as one, led by axis L.
            is_scanned = captured_layer.ndim == 5
            weights += list(captured_layer) if is_scanned else [captured_layer]
    chex.assert_rank(weights, 4)
    return weights


def attention_rollout(layers: Sequence[Array]) -> Array:
    """Follow the attention through all layers: how much each input token reaches each
    output token.

    A layer passes on half of what its attention gathers, the mean over the heads, and,
    by its residual, half of what was there before.

    Args:
        layers: weights_BNTT of each layer, the first layer first.

    Returns:
        rollout_BTT: row t tells of output token t; every row sums to 1; float32 or
        wider.

    Raises:
        ValueError: if there are no layers.

    References: arXiv:2005.00928, section 3.
    """
    if len(layers) == 0:
        raise ValueError(
            "layers must have at least 1, there are no layers of attention to follow"
        )
    layers = [_widen(weights_BNTT) for weights_BNTT in layers]
    chex.assert_rank(layers, 4)
    batch, _, num_tokens, _ = layers[0].shape
    chex.assert_shape(layers, (batch, None, num_tokens, num_tokens))
    identity_TT = jnp.eye(num_tokens, dtype=layers[0].dtype)
    rollout_BTT = jnp.broadcast_to(identity_TT, (batch, num_tokens, num_tokens))
    for weights_BNTT in layers:
        step_BTT = (weights_BNTT.mean(axis=1) + identity_TT[None]) / 2
        step_BTT /= step_BTT.sum(axis=-1, keepdims=True)
        rollout_BTT = jnp.einsum("btu,bus->bts", step_BTT, rollout_BTT)
    chex.assert_shape(rollout_BTT, (batch, num_tokens, num_tokens))
    return rollout_BTT


def patch_relevance(map_BTT: Array, *, has_class_token: bool) -> Array:
    """Tell how much each patch matters to what the classifier reads.

    That is the class token, or without one the mean over all tokens.

    Args:
        map_BTT: an `attention_rollout`, or one head's weights.
        has_class_token: whether token 0 is the class token.

    Returns:
        relevance_BP: of the patches alone; sums to 1; float32 or wider.

    Raises:
        ValueError: if there is no patch.
    """
    chex.assert_rank(map_BTT, 3)
    _check_patches("map_BTT", map_BTT, has_class_token)
    map_BTT = _widen(map_BTT)
    if has_class_token:
        relevance_BP = map_BTT[:, 0, 1:]
        return relevance_BP / relevance_BP.sum(axis=-1, keepdims=True)
    return map_BTT.mean(axis=1)


def mean_attention_distance(
    weights_BNTT: Array, *, grid: tuple[int, int], has_class_token: bool
) -> Array:
    """Tell how far the patches look, on average, in units of the patch's side.

    Args:
        weights_BNTT: a layer's attention weights.
        grid: number of rows and of columns of patches.
        has_class_token: whether token 0 is the class token; it has no place, and is
            left out.

    Returns:
        distance_N: of each head, the mean over images and patches; float32 or wider.

    Raises:
        ValueError: if the grid has no patch or is not that of the weights, or there
            is no image.

    References: arXiv:2010.11929, figure 7 and appendix D.7.
    """
    chex.assert_rank(weights_BNTT, 4)
    rows, columns = grid
    if rows < 1 or columns < 1:
        raise ValueError(
            f"grid must have at least 1 row and 1 column, got {rows}x{columns}"
        )
    if weights_BNTT.shape[0] < 1:
        raise ValueError(
            f"weights_BNTT must be of at least 1 image, got shape {weights_BNTT.shape}"
        )
    first = int(has_class_token)
    num_tokens = rows * columns + first
    if weights_BNTT.shape[-1] != num_tokens:
        raise ValueError(
            f"a grid of {rows}x{columns} patches makes {num_tokens} tokens, got "
            f"weights of {weights_BNTT.shape[-1]}"
        )
    weights_BNPP = _widen(weights_BNTT)[:, :, first:, first:]
    weights_BNPP /= weights_BNPP.sum(axis=-1, keepdims=True)
    row_P, column_P = (x.ravel() for x in np.indices(grid))
    distance_PP = np.hypot(row_P[:, None] - row_P, column_P[:, None] - column_P)
    distance_PP = jnp.asarray(distance_PP, weights_BNPP.dtype)
    distance_N = jnp.einsum("bnpq,pq->bnp", weights_BNPP, distance_PP).mean(axis=(0, 2))
    chex.assert_shape(distance_N, (weights_BNTT.shape[1],))
    return distance_N


def position_similarity(position_1TD: Array, *, has_class_token: bool) -> Array:
    """Compare the position embeddings of all pairs of patches.

    Args:
        position_1TD: the parameter `pos_embedding`.
        has_class_token: whether token 0 is the class token; it is left out.

    Returns:
        similarity_PP: cosines, in [-1, 1]; float32 or wider.

    Raises:
        ValueError: if there is no patch.

    References: arXiv:2010.11929, figure 7.
    """
    chex.assert_shape(position_1TD, (1, None, None))
    _check_patches("position_1TD", position_1TD, has_class_token)
    position_PD = _widen(position_1TD)[0, int(has_class_token) :]
    position_PD /= jnp.linalg.norm(position_PD, axis=-1, keepdims=True)
    return position_PD @ position_PD.T


def _widen(x: Array) -> Array:
    """Cast bfloat16 to float32: a mean over many layers and tokens needs its digits."""
    x = jnp.asarray(x)
    return x.astype(float32_or_wider(x.dtype))


def _check_patches(name: str, x: Array, has_class_token: bool) -> None:
    """Raise ValueError if axis 1 has no token of a patch."""
    if x.shape[1] <= has_class_token:
        raise ValueError(f"{name} must have at least 1 patch, got shape {x.shape}")


def _by_number(path: str) -> list[str | int]:
    """Sort block_10 behind block_9."""
    return [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", path)]
