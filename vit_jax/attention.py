"""Attention: softmax(QKᵀ/√d_k)V, alone and with several heads.

References: "Attention Is All You Need", arXiv:1706.03762, section 3.2.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.checks import check_at_least, is_known
from vit_jax.dense import Dense
from vit_jax.dropout import Dropout, check_rates
from vit_jax.dtypes import float32_or_wider
from vit_jax.masks import causal_mask, combine_masks

Array = jax.Array


def dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None = None,
    *,
    dropout: Callable[[Array], Array] | None = None,
    return_weights: bool = False,
) -> Array | tuple[Array, Array]:
    """Attend: average the values, weighted by how well their keys fit the query.

    The leading axes, any number of them, are batch axes: images, heads, both or none.

    Args:
        query: (..., T, K).
        key: (..., S, K).
        value: (..., S, V).
        mask: bool, broadcastable to (..., T, S), True where a query may attend. A row
            that may attend to nothing gets uniform weights rather than NaN.
        dropout: applied to the weights before they meet the values.
        return_weights: whether to return the weights too.

    Returns:
        The output (..., T, V) in the query's dtype; with `return_weights` also the
        weights (..., T, S) before dropout, whose rows sum to 1. Products and softmax
        run in float32 or wider.

    Raises:
        ValueError: if there is no key, or its size is 0.

    References: arXiv:1706.03762, eq. 1.
    """
    *batch, num_queries, head_size = query.shape
    num_keys, value_size = value.shape[-2:]
    chex.assert_shape(key, (*batch, num_keys, head_size))
    chex.assert_shape(value, (*batch, num_keys, value_size))
    if num_keys < 1 or head_size < 1:
        raise ValueError(f"key must have S >= 1 and K >= 1, got shape {key.shape}")

    # One merged batch axis: XLA's CPU backend multiplies (B·N, T, K) faster than
    # (B, N, T, K), by a tenth of a small ViT's training step.
    size, dtype = math.prod(batch), float32_or_wider(query.dtype)
    query, key, value = (x.reshape(size, *x.shape[-2:]) for x in (query, key, value))
    logits = jnp.einsum("btk,bsk->bts", query, key, preferred_element_type=dtype)
    logits = logits.reshape(*batch, num_queries, num_keys) / head_size**0.5
    if mask is not None:
        chex.assert_type(mask, bool)
        mask = jnp.broadcast_to(mask, logits.shape)
        logits = jnp.where(mask, logits, jnp.finfo(logits.dtype).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(query.dtype)

    dropped = weights if dropout is None else dropout(weights)
    dropped = dropped.reshape(size, num_queries, num_keys)
    output = jnp.einsum("bts,bsv->btv", dropped, value)
    output = output.reshape(*batch, num_queries, value_size)
    chex.assert_shape(weights, (*batch, num_queries, num_keys))
    return (output, weights) if return_weights else output


class MultiHeadAttention(nn.Module):
    """Several attention heads side by side, then a projection of their outputs.

    The weights of the last call lie in the collection `intermediates` under
    `attention_weights` when that collection is mutable. Keys and values for decoding
    token by token lie in the collection `cache`.

    Attributes:
        num_heads: number of heads N; divides the width D.
        dropout_rate: dropout on the attention weights, drawn from the rng "dropout".
        attention_implementation: "own", the function above, or one of
            `jax.nn.dot_product_attention`: "cudnn" (FlashAttention, for bfloat16 on
            NVIDIA GPUs) or "xla". These do without the weights, so that "own" steps in
            where weights are captured or dropped, and in decoding; likewise for float64
            and under strict dtype promotion, which they do not support.
        dtype: dtype of the computation; parameters stay float32, the softmax runs in
            float32 or wider.

    References: arXiv:1706.03762, section 3.2.2; arXiv:2010.11929, eq. 5-8.
    """

    num_heads: int
    dropout_rate: float = 0.0
    attention_implementation: str = "own"
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
        """Attend from every token of the query to the memory.

        Args:
            query_BTD: the tokens that ask, D = width.
            memory_BSD: the tokens that answer; the query itself (self-attention) if
                not given.
            mask: bool, True where a query may attend: (T, S) for all alike, or four
                axes that broadcast to (B, N, T, S).
            train: whether dropout is active.
            decode: whether the query's tokens follow on those of earlier calls. The
                first call lays out an empty cache of T tokens, and keeps the memory's
                keys and values where there is a memory. Every later one attends from
                its tokens to all that came before, and to themselves.

        Returns:
            out_BTD in the compute dtype.

        Raises:
            ValueError: if the width is not divisible by the number of heads, the
                memory has no token, the mask has neither two nor four axes, there is no
                such implementation, or more tokens are decoded than the cache was laid
                out for. Under jit the output is then NaN, from that call on.
        """
        chex.assert_rank(query_BTD, 3)
        is_self_attention = memory_BSD is None
        memory_BSD = query_BTD if is_self_attention else memory_BSD
        batch, _, width = query_BTD.shape
        chex.assert_shape(memory_BSD, (batch, None, width))
        self._check(memory_BSD, mask)

        query_BNTK = self._heads("query", query_BTD)
        key_BNSK = self._heads("key", memory_BSD)
        value_BNSK = self._heads("value", memory_BSD)
        if decode and is_self_attention:
            key_BNSK, value_BNSK, past_TS = self._append(key_BNSK, value_BNSK)
            mask = combine_masks(past_TS, mask)
        elif decode:
            key_BNSK, value_BNSK = self._recall(key_BNSK, value_BNSK)
        heads = (query_BNTK, key_BNSK, value_BNSK, mask)
        if self._is_own(train, decode):
            out_BTNK = self._attend(*heads, train=train)
        else:
            out_BTNK = self._attend_fused(*heads)
        heads_BTD = out_BTNK.reshape(query_BTD.shape)
        out_BTD = Dense(width, dtype=self.dtype, name="out")(heads_BTD)
        chex.assert_shape(out_BTD, query_BTD.shape)
        return out_BTD

    def _is_own(self, train: bool, decode: bool) -> bool:
        """Whether our own function attends, because no other gives what is needed."""
        is_captured = self.is_mutable_collection("intermediates")
        is_dropped = train and self.dropout_rate > 0
        # JAX's softmax is float32, and its bfloat16 gradient needs standard promotion.
        promotion = jax.config.jax_numpy_dtype_promotion  # type: ignore (not declared)
        is_strict = promotion == "strict"
        is_refused = is_strict or jnp.dtype(self.dtype) == jnp.float64
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
        """Attend by our own function, and offer the weights; returns out_BTNK."""
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
    ) -> Array:
        """Attend by one of JAX's functions; returns out_BTNK."""
        return jax.nn.dot_product_attention(
            *(x.swapaxes(1, 2) for x in (query_BNTK, key_BNSK, value_BNSK)),
            mask=mask[None, None] if mask is not None and mask.ndim == 2 else mask,
            implementation=self.attention_implementation,  # type: ignore (a Literal)
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
        if self.attention_implementation not in ("own", "cudnn", "xla"):
            raise ValueError(
                "attention_implementation must be 'own', 'cudnn' or 'xla', got "
                f"{self.attention_implementation!r}"
            )
        if mask is not None and mask.ndim not in (2, 4):
            raise ValueError(
                "mask must have the axes (T, S) or (B, N, T, S), got shape "
                f"{mask.shape}"
            )

    def _heads(self, name: str, x_BTD: Array) -> Array:
        """Project and split the width into heads: (B, T, D) → (B, N, T, K)."""
        batch, length, width = x_BTD.shape
        x_BTD = Dense(width, dtype=self.dtype, name=name)(x_BTD)
        x_BTNK = x_BTD.reshape(batch, length, self.num_heads, width // self.num_heads)
        return x_BTNK.swapaxes(1, 2)

    def _recall(self, key_BNSK: Array, value_BNSK: Array) -> tuple[Array, Array]:
        """The memory's keys and values: those of the first call, ever after."""
        key = self.variable("cache", "past_key", lambda: key_BNSK)
        value = self.variable("cache", "past_value", lambda: value_BNSK)
        return key.value, value.value

    def _append(self, key_BNTK: Array, value_BNTK: Array) -> tuple[Array, Array, Array]:
        """Put the new tokens' keys and values into the cache, behind the earlier ones.

        Returns:
            key_BNSK, value_BNSK: the whole cache.
            past_TS: bool, which of it each of the new tokens may attend to.
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
        key_S = jnp.arange(key.value.shape[2], dtype=jnp.int32)
        past_TS = key_S[None, :] <= position_T[:, None]
        return key.value, value.value, past_TS

    def _is_full(self, num_tokens: int, index: Array, cache_size: int) -> Array:
        """Whether the cache lacks room; raises ValueError where that is known."""
        num_past = int(index) if is_known(index) else 0
        if num_past + num_tokens > cache_size:
            raise ValueError(
                f"decode must be called for at most {cache_size} tokens in all, as the "
                f"cache was laid out, got {num_tokens} after {num_past}"
            )
        return index + num_tokens > cache_size
