"""Interpret a trained model: attention maps, rollout, distances, positions.

Everything is computed from the weights of a normal forward pass.
"""

import math
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.capture import attention_weights as attention_weights
from vit_jax.capture import pool_weights as pool_weights
from vit_jax.checks import check_at_least
from vit_jax.dtypes import float32_or_wider

Array = jax.Array


def attention_rollout(layers: Sequence[Array], *, residual: bool = True) -> Array:
    """Compute attention rollout: how much each input token reaches each output token.

    Each layer's matrix is the mean of the attention weights, averaged over the heads,
    and of the identity, which stands for the residual.

    >>> attention_rollout([jnp.full((1, 2, 2, 2), 0.5)])
    Array([[[0.75, 0.25],
            [0.25, 0.75]]], dtype=float32)

    Args:
        layers: weights_BNTT of each layer, the first layer first.
        residual: whether the blocks have residual connections.

    Returns:
        rollout_BTT: rows are output tokens, columns input tokens; every row sums to 1;
        float32 or wider.

    Raises:
        ValueError: if there are no layers.

    References: arXiv:2005.00928, section 3.
    """
    chex.assert_rank(layers, 4)
    if len(layers) == 0:
        raise ValueError(
            "layers must hold the attention weights of at least 1 layer, got none"
        )
    layers = [_widen(weights_BNTT) for weights_BNTT in layers]
    batch, _, num_tokens, _ = layers[0].shape
    chex.assert_shape(layers, (batch, None, num_tokens, num_tokens))
    identity_TT = jnp.eye(num_tokens, dtype=layers[0].dtype)
    rollout_BTT = jnp.broadcast_to(identity_TT, (batch, num_tokens, num_tokens))
    for weights_BNTT in layers:
        step_BTT = weights_BNTT.mean(axis=1)
        if residual:
            step_BTT = (step_BTT + identity_TT[None]) / 2
        step_BTT /= step_BTT.sum(axis=-1, keepdims=True)
        rollout_BTT = jnp.einsum(
            "btu,bus->bts", step_BTT, rollout_BTT, precision="highest"
        )
    chex.assert_shape(rollout_BTT, (batch, num_tokens, num_tokens))
    return rollout_BTT


def patch_relevance(
    map_BTT: Array,
    *,
    has_class_token: bool,
    num_registers: int = 0,
    weight_BT: Array | None = None,
) -> Array:
    """Compute how much each patch contributes to the classifier's input.

    That input is the class token, or the mean of the patches, weighted by `weight_BT`
    if that is given.

    >>> patch_relevance(jnp.full((1, 5, 5), 0.2), has_class_token=True)
    Array([[0.25, 0.25, 0.25, 0.25]], dtype=float32)

    Args:
        map_BTT: an `attention_rollout`, or one head's weights.
        has_class_token: whether token 0 is the class token.
        num_registers: number of tokens behind the patches, which are left out.
        weight_BT: weight of each patch without a class token, see `pool_weights`; None
            for equal ones.

    Returns:
        relevance_BT: one value for each patch; sums to 1, or is 0 where no patch
            contributes; float32 or wider.

    Raises:
        ValueError: if there is no patch, or a negative number of registers.
    """
    chex.assert_rank(map_BTT, 3)
    chex.assert_shape(map_BTT, (None, map_BTT.shape[2], map_BTT.shape[2]))
    check_at_least(0, num_registers=num_registers)
    _check_patches("map_BTT", map_BTT, has_class_token + num_registers)
    num_tokens = map_BTT.shape[1] - num_registers
    map_BTT = _widen(map_BTT[:, :num_tokens, :num_tokens])
    relevance_BT = map_BTT[:, 0, 1:] if has_class_token else map_BTT.mean(axis=1)
    if weight_BT is not None:
        chex.assert_shape(weight_BT, (map_BTT.shape[0], num_tokens))
        relevance_BT = jnp.einsum(
            "bt,bts->bs", _widen(weight_BT), map_BTT, precision="highest"
        )
    relevance_BT = _divide(relevance_BT, relevance_BT.sum(axis=-1, keepdims=True))
    num_patches = num_tokens - has_class_token
    chex.assert_shape(relevance_BT, (map_BTT.shape[0], num_patches))
    return relevance_BT


def mean_attention_distance(
    weights_BNTT: Array,
    *,
    grid: tuple[int, int],
    has_class_token: bool,
    num_registers: int = 0,
) -> Array:
    """Compute each head's mean attention distance, in units of a patch's side.

    >>> weights_BNTT = jnp.full((1, 1, 2, 2), 0.5)
    >>> mean_attention_distance(weights_BNTT, grid=(1, 2), has_class_token=False)
    Array([0.5], dtype=float32)

    Args:
        weights_BNTT: a layer's attention weights.
        grid: number of rows and of columns of patches.
        has_class_token: whether token 0 is the class token, which has no position and
            is left out.
        num_registers: number of tokens behind the patches, left out as well.

    Returns:
        distance_N: the mean over images and patches; float32 or wider. A patch that
            attends to no patch counts as 0.

    Raises:
        ValueError: if the grid has no patch or does not fit the weights, there is no
            image, or a negative number of registers.

    References: arXiv:2010.11929, figure 7 and appendix D.7.
    """
    chex.assert_rank(weights_BNTT, 4)
    num_tokens = weights_BNTT.shape[3]
    chex.assert_shape(weights_BNTT, (None, None, num_tokens, num_tokens))
    check_at_least(0, num_registers=num_registers)
    _check_grid(weights_BNTT.shape, grid, has_class_token + num_registers)
    first = int(has_class_token)
    last = math.prod(grid) + first
    weights_BNTT = _widen(weights_BNTT)[:, :, first:last, first:last]
    weights_BNTT = _divide(weights_BNTT, weights_BNTT.sum(axis=-1, keepdims=True))
    row_T, column_T = (x.ravel() for x in np.indices(grid))
    distance_TT = np.hypot(row_T[:, None] - row_T, column_T[:, None] - column_T)
    distance_TT = jnp.asarray(distance_TT, weights_BNTT.dtype)
    distance_BNT = jnp.einsum(
        "bnts,ts->bnt", weights_BNTT, distance_TT, precision="highest"
    )
    distance_N = distance_BNT.mean(axis=(0, 2))
    chex.assert_shape(distance_N, weights_BNTT.shape[1:2])
    return distance_N


def position_similarity(position_1TD: Array, *, has_class_token: bool) -> Array:
    """Compute the cosine similarity of the position embeddings of all patches.

    >>> position_1TD = jnp.array([[[2.0, 0.0], [0.0, 3.0]]])
    >>> position_similarity(position_1TD, has_class_token=False)
    Array([[1., 0.],
           [0., 1.]], dtype=float32)

    Args:
        position_1TD: the parameter `pos_embedding`.
        has_class_token: whether token 0 is the class token, which is left out.

    Returns:
        similarity_TT: cosines, in [-1, 1], 0 for an embedding of zeros; float32 or
            wider.

    Raises:
        ValueError: if there is no patch.

    References: arXiv:2010.11929, figure 7.
    """
    chex.assert_shape(position_1TD, (1, None, None))
    _check_patches("position_1TD", position_1TD, has_class_token)
    position_TD = _widen(position_1TD)[0, int(has_class_token) :]
    norm_T1 = jnp.linalg.norm(position_TD, axis=-1, keepdims=True)
    position_TD = _divide(position_TD, norm_T1)
    similarity_TT = jnp.matmul(position_TD, position_TD.T, precision="highest")
    num_patches = position_1TD.shape[1] - has_class_token
    chex.assert_shape(similarity_TT, (num_patches, num_patches))
    return similarity_TT


def _check_grid(shape: tuple[int, ...], grid: tuple[int, int], num_others: int) -> None:
    """Raise ValueError unless weights are of images, and of a grid's tokens."""
    rows, columns = grid
    if rows < 1 or columns < 1:
        raise ValueError(
            f"grid must have at least 1 row and 1 column, got {rows}x{columns}"
        )
    if shape[0] < 1:
        raise ValueError(f"weights_BNTT must be of at least 1 image, got shape {shape}")
    num_tokens = rows * columns + num_others
    if shape[-1] != num_tokens:
        raise ValueError(
            f"a grid of {rows}x{columns} patches makes {num_tokens} tokens, got "
            f"weights of {shape[-1]}"
        )


def _widen(x: Array) -> Array:
    """Cast to float32 or wider: bfloat16 is too coarse for means over many tokens."""
    x = jnp.asarray(x)
    return x.astype(float32_or_wider(x.dtype))


def _divide(x: Array, total: Array) -> Array:
    """Divide by a total that is not negative; 0 / 0 is 0."""
    return x / jnp.maximum(total, jnp.finfo(total.dtype).tiny)


def _check_patches(name: str, x: Array, num_others: int) -> None:
    """Raise ValueError if axis 1 holds no patch beside the other tokens."""
    if x.shape[1] <= num_others:
        raise ValueError(f"{name} must have at least 1 patch, got shape {x.shape}")
