"""Attention: scaled dot-product attention and multi-head attention.

References: "Attention Is All You Need", arXiv:1706.03762, section 3.2.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.checks import check_at_least, check_choice, is_known
from vit_jax.dtypes import float32_or_wider
from vit_jax.layers import Dense, Dropout, check_rates
from vit_jax.masks import causal_mask, combine_masks

Array = jax.Array
AttentionImplementation = Literal["own", "cudnn", "xla"]


def dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None = None,
    *,
    dropout: Callable[[Array], Array] | None = None,
    return_weights: bool = False,
) -> Array | tuple[Array, Array]:
    """Compute softmax(QKᵀ/√d_k)V, over any number of leading batch axes.

    >>> query, key = jnp.ones((2, 3, 8)), jnp.ones((2, 5, 8))
    >>> dot_product_attention(query, key, value=key).shape
    (2, 3, 8)

    Args:
        query: (..., T, K).
        key: (..., S, K).
        value: (..., S, K), where K may be another size.
        mask: bool, broadcastable to (..., T, S), True where a query may attend. A row
            without True gets uniform weights rather than NaN.
        dropout: applied to the weights before they multiply the values.
        return_weights: whether to return the weights too.

    Returns:
        The output (..., T, K), K as in `value`, in the query's dtype; if asked for, the
        weights (..., T, S) before dropout, whose rows sum to 1. Products and softmax
        run in float32 or wider.

    Raises:
        ValueError: if S or K is 0.

    References: arXiv:1706.03762, eq. 1.
    """
    chex.assert_shape([query, value], (..., None, None))
    *batch, num_queries, head_size = query.shape
    num_keys, value_size = value.shape[-2:]
    chex.assert_shape(key, (*batch, num_keys, head_size))
    chex.assert_shape(value, (*batch, num_keys, value_size))
    weights = _attention_weights(query, key, mask)
    dropped = weights if dropout is None else dropout(weights)
    output = _multiply("bts,bsk->btk", dropped, value)
    chex.assert_shape(weights, (*batch, num_queries, num_keys))
    chex.assert_shape(output, (*batch, num_queries, value_size))
    return (output, weights) if return_weights else output


def _attention_weights(query: Array, key: Array, mask: Array | None) -> Array:
    """Compute softmax(QKᵀ/√d_k): (..., T, S)."""
    if min(key.shape[-2:]) < 1:
        raise ValueError(f"key must have S >= 1 and K >= 1, got shape {key.shape}")
    dtype = float32_or_wider(query.dtype)
    logits = _multiply("btk,bsk->bts", query, key, dtype) / key.shape[-1] ** 0.5
    if mask is not None:
        chex.assert_type(mask, bool)
        mask = jnp.broadcast_to(mask, logits.shape)
        logits = jnp.where(mask, logits, jnp.finfo(logits.dtype).min)
    return jax.nn.softmax(logits, axis=-1).astype(query.dtype)


def _multiply(product: str, x: Array, y: Array, dtype: Any = None) -> Array:
    """Multiply batches of matrices, all leading axes merged into one.

    XLA's CPU backend multiplies (B·N, T, K) faster than (B, N, T, K), by a tenth of a
    small ViT's training step.
    """
    batch = x.shape[:-2]
    x, y = (a.reshape(math.prod(batch), *a.shape[-2:]) for a in (x, y))
    out = jnp.einsum(product, x, y, preferred_element_type=dtype)
    return out.reshape(*batch, *out.shape[-2:])


class MultiHeadAttention(nn.Module):
    """Attend with several heads, and project their concatenated outputs.

    The weights of the last call are stored in the collection `intermediates`, as
    `attention_weights`, when that collection is mutable.

    With `decode=True` keys and values are stored in the collection `cache`. The first
    call only sizes the cache for its T tokens and stores the memory's keys and values,
    if there is a memory. Later calls bring the next tokens, which attend to all earlier
    ones and to themselves. Too many tokens are a ValueError; under jit the output is
    NaN from that call on.

    >>> x_BTD = jnp.ones((2, 5, 16))
    >>> attention = MultiHeadAttention(num_heads=4)
    >>> attention.init_with_output(jax.random.key(0), x_BTD)[0].shape
    (2, 5, 16)

    Attributes:
        num_heads: number of heads N; divides the width D.
        dropout_rate: dropout on the attention weights, drawn from the rng "dropout".
        attention_implementation: "own", `dot_product_attention` of this module, or an
            implementation of `jax.nn.dot_product_attention`: "cudnn" (FlashAttention,
            for bfloat16 on NVIDIA GPUs) or "xla". JAX's return no weights, so "own" is
            used where weights are captured or dropped, and in decoding; likewise for
            float64 and under strict dtype promotion, which they do not support.
        dtype: dtype of the computation; parameters stay float32, the softmax runs in
            float32 or wider.

    References: arXiv:1706.03762, section 3.2.2; arXiv:2010.11929, eq. 5-8.
    """

    num_heads: int
    dropout_rate: float = 0.0
    attention_implementation: AttentionImplementation = "own"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        query_BTD: Array,
        memory_BSD: Array | None = None,
        mask: Array | None = None,
        *,
        train: bool = False,
        decode: bool = False,
    ) -> Array:
        """Attend from the query tokens to the key/value tokens.

        Args:
            memory_BSD: key/value tokens; the query tokens (self-attention) by default.
            mask: bool, True where a query may attend: (T, S) for all alike, or four
                axes that broadcast to (B, N, T, S).
            train: whether dropout is active.
            decode: whether to use the collection `cache`, see the class.

        Returns:
            out_BTD in the compute dtype.
        """
        inputs = query_BTD, query_BTD if memory_BSD is None else memory_BSD
        chex.assert_rank(inputs, 3)
        dims = chex.Dimensions(B=query_BTD.shape[0], D=query_BTD.shape[2])
        chex.assert_shape(inputs, dims["B*D"])
        self._check(inputs[1], mask)
        query_BNTK = self._project("query", inputs[0])
        key_BNSK, value_BNSK = (self._project(x, inputs[1]) for x in ("key", "value"))
        if decode and memory_BSD is None:
            key_BNSK, value_BNSK, past_TS = self._append(key_BNSK, value_BNSK)
            mask = combine_masks(past_TS, mask)
        elif decode:
            key_BNSK, value_BNSK = self._recall(key_BNSK, value_BNSK)
        attend = self._attend if self._is_own(train, decode) else self._attend_fused
        out_BTNK = attend(query_BNTK, key_BNSK, value_BNSK, mask, train=train)
        output_layer = Dense(query_BTD.shape[2], dtype=self.dtype, name="out")
        out_BTD = output_layer(out_BTNK.reshape(query_BTD.shape))
        chex.assert_shape(out_BTD, query_BTD.shape)
        return out_BTD

    def _is_own(self, train: bool, decode: bool) -> bool:
        """Return whether `dot_product_attention` of this module has to be used."""
        is_captured = self.is_mutable_collection("intermediates")
        is_dropped = train and self.dropout_rate > 0
        # JAX's softmax is float32, and its bfloat16 gradient needs standard promotion.
        promotion = jax.config.jax_numpy_dtype_promotion  # type: ignore (not declared)
        is_refused = promotion == "strict" or jnp.dtype(self.dtype) == jnp.float64
        is_asked_for = self.attention_implementation == "own"
        return is_asked_for or is_refused or is_captured or is_dropped or decode

    def _attend(
        self,
        query_BNTK: Array,
        key_BNSK: Array,
        value_BNSK: Array,
        mask: Array | None,
        *,
        train: bool,
    ) -> Array:
        """Attend by this module's function, and store the weights; return out_BTNK."""
        out_BNTK, weights_BNTS = dot_product_attention(
            query_BNTK,
            key_BNSK,
            value_BNSK,
            mask,
            dropout=Dropout(self.dropout_rate, deterministic=not train),
            return_weights=True,
        )
        self.sow("intermediates", "attention_weights", weights_BNTS)
        return out_BNTK.swapaxes(1, 2)

    def _attend_fused(
        self,
        query_BNTK: Array,
        key_BNSK: Array,
        value_BNSK: Array,
        mask: Array | None,
        *,
        train: bool,
    ) -> Array:
        """Attend by one of JAX's functions, without dropout; return out_BTNK."""
        del train
        return jax.nn.dot_product_attention(
            *(x.swapaxes(1, 2) for x in (query_BNTK, key_BNSK, value_BNSK)),
            mask=mask[None, None] if mask is not None and mask.ndim == 2 else mask,
            implementation=self.attention_implementation,  # type: ignore (not "own")
        )

    def _check(self, memory_BSD: Array, mask: Array | None) -> None:
        """Raise ValueError for a field, a memory or a mask that does not fit."""
        check_rates(self)
        _, num_keys, width = memory_BSD.shape
        check_at_least(1, width=width)
        if num_keys < 1:
            raise ValueError(
                "memory_BSD (without one: query_BTD) must have at least 1 token, got "
                f"shape {memory_BSD.shape}"
            )
        if self.num_heads < 1 or width % self.num_heads:
            raise ValueError(
                "width must be divisible by num_heads, got width "
                f"{width} and num_heads {self.num_heads}"
            )
        name = "attention_implementation"
        check_choice(name, getattr(self, name), get_args(AttentionImplementation))
        if mask is not None and mask.ndim not in (2, 4):
            raise ValueError(
                "mask must have the axes (T, S) or (B, N, T, S), got shape "
                f"{mask.shape}"
            )

    def _project(self, name: str, x_BTD: Array) -> Array:
        """Project the tokens and split the width into heads: x_BNTK."""
        batch, length, width = x_BTD.shape
        x_BTD = Dense(width, dtype=self.dtype, name=name)(x_BTD)
        x_BTNK = x_BTD.reshape(batch, length, self.num_heads, width // self.num_heads)
        return x_BTNK.swapaxes(1, 2)

    def _recall(self, key_BNSK: Array, value_BNSK: Array) -> tuple[Array, Array]:
        """Return the memory's keys and values as they were in the first call."""
        key = self.variable("cache", "past_key", lambda: key_BNSK)
        value = self.variable("cache", "past_value", lambda: value_BNSK)
        return key.value, value.value

    def _append(self, key_BNTK: Array, value_BNTK: Array) -> tuple[Array, Array, Array]:
        """Put the new tokens' keys and values into the cache, behind the earlier ones.

        Returns:
            key_BNSK, value_BNSK: the whole cache.
            past_TS: bool, which cached keys each new token may attend to.
        """
        is_laid_out = self.has_variable("cache", "index")
        key = self.variable("cache", "past_key", jnp.zeros_like, key_BNTK)
        value = self.variable("cache", "past_value", jnp.zeros_like, value_BNTK)
        index = self.variable("cache", "index", jnp.zeros, (), jnp.int32)
        num_tokens = key_BNTK.shape[2]
        if not is_laid_out:
            return key_BNTK, value_BNTK, causal_mask(num_tokens)
        is_full = self._is_full(num_tokens, index.value, key.value.shape[2])
        value_BNTK = jnp.where(is_full, jnp.nan, value_BNTK)
        append = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=2)
        key.value = append(key.value, key_BNTK, index.value)
        value.value = append(value.value, value_BNTK, index.value)
        position_T = index.value + jnp.arange(num_tokens, dtype=jnp.int32)
        index.value += num_tokens
        position_S = jnp.arange(key.value.shape[2], dtype=jnp.int32)
        past_TS = position_S[None, :] <= position_T[:, None]
        return key.value, value.value, past_TS

    def _is_full(self, num_tokens: int, index: Array, cache_size: int) -> Array:
        """Return whether the cache lacks room; raise ValueError where that is known."""
        num_past = int(index) if is_known(index) else 0
        if num_past + num_tokens > cache_size:
            raise ValueError(
                f"decode must be called for at most {cache_size} tokens in all, as the "
                f"cache was laid out, got {num_tokens} after {num_past}"
            )
        return index + num_tokens > cache_size
