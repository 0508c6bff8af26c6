"""Scaled dot-product attention.

References: "Attention Is All You Need", arXiv:1706.03762, section 3.2.1.
"""

import math
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from vit_jax.dtypes import float32_or_wider
from vit_jax.layers import DotGeneral

Array = jax.Array


def dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None = None,
    *,
    dropout: Callable[[Array], Array] | None = None,
    return_weights: bool = False,
    dot_general: DotGeneral = jax.lax.dot_general,
) -> Array | tuple[Array, Array]:
    """Compute softmax(QKᵀ/√d_k)V, over any number of leading batch axes.

    Heads are a leading axis, (B, N, T, K). `jax.nn.dot_product_attention` and
    `flax.linen.dot_product_attention`, in contrast, take (B, T, N, K).

    >>> query, key = jnp.ones((2, 3, 8)), jnp.ones((2, 5, 8))
    >>> dot_product_attention(query, key, value=key).shape
    (2, 3, 8)

    Args:
        query: (..., T, K), floating point, like key and value.
        key: (..., S, K).
        value: (..., S, K), where K may be another size.
        mask: bool, broadcastable to (..., T, S), True where a query may attend. A row
            without True gets uniform weights rather than NaN.
        dropout: applied to the weights before they multiply the values.
        return_weights: whether to return the weights too.
        dot_general: multiplies the matrices.

    Returns:
        The output (..., T, K), K as in `value`, in the query's dtype; if asked for, the
        weights (..., T, S) before dropout, whose rows sum to 1. QKᵀ and the softmax
        are computed in float32 or wider; the weights are then rounded to the query's
        dtype, so that in bfloat16 the sum of a row may be off by a percent.

    Raises:
        ValueError: if S or K is 0.

    References: arXiv:1706.03762, eq. 1.
    """
    chex.assert_type([query, key, value], float)
    chex.assert_shape([query, value], (..., None, None))
    *batch, num_queries, head_size = query.shape
    num_keys, value_size = value.shape[-2:]
    chex.assert_shape(key, (*batch, num_keys, head_size))
    chex.assert_shape(value, (*batch, num_keys, value_size))
    weights = _attention_weights(query, key, mask, dot_general)
    dropped = weights if dropout is None else dropout(weights)
    output = _matmul(dropped, value, dot_general=dot_general).astype(query.dtype)
    chex.assert_shape(weights, (*batch, num_queries, num_keys))
    chex.assert_shape(output, (*batch, num_queries, value_size))
    return (output, weights) if return_weights else output


def _attention_weights(
    query: Array, key: Array, mask: Array | None, dot_general: DotGeneral
) -> Array:
    """Compute softmax(QKᵀ/√d_k): (..., T, S)."""
    if key.shape[-2] < 1 or key.shape[-1] < 1:
        raise ValueError(f"key must have S >= 1 and K >= 1, got shape {key.shape}")
    dtype = float32_or_wider(query.dtype)
    logits = _matmul(query, key, transpose_y=True, dtype=dtype, dot_general=dot_general)
    logits /= key.shape[-1] ** 0.5
    if mask is not None:
        chex.assert_type(mask, bool)
        mask = jnp.broadcast_to(mask, logits.shape)
        logits = jnp.where(mask, logits, jnp.finfo(logits.dtype).min)
    return jax.nn.softmax(logits, axis=-1).astype(query.dtype)


def _matmul(
    x: Array,
    y: Array,
    *,
    transpose_y: bool = False,
    dtype: Any = None,
    dot_general: DotGeneral,
) -> Array:
    """Compute x y, or x yᵀ, of batches of matrices.

    All leading axes are merged into one: XLA's CPU backend multiplies (B·N, T, K)
    faster than (B, N, T, K), by a tenth of a small ViT's training step.
    """
    batch = x.shape[:-2]
    x, y = (a.reshape(math.prod(batch), *a.shape[-2:]) for a in (x, y))
    numbers = (((2,), (2 if transpose_y else 1,)), ((0,), (0,)))
    out = dot_general(x, y, numbers, preferred_element_type=dtype)
    return out.reshape(*batch, *out.shape[-2:])
