"""Multi-head attention, with a cache for decoding.

References: "Attention Is All You Need", arXiv:1706.03762, section 3.2.2.
"""

import functools
from typing import Any, Literal, get_args

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.attention import dot_product_attention
from vit_jax.checks import check_at_least, check_choice, check_rates, is_concrete
from vit_jax.dtypes import float32_or_wider
from vit_jax.layers import DotGeneral, Dropout, LayerNorm, make_dense
from vit_jax.masks import causal_mask, combine_masks
from vit_jax.position import rotate

Array = jax.Array
AttentionImplementation = Literal["own", "cudnn", "xla"]


class MultiHeadAttention(nn.Module):
    """Attend with several heads, and project their concatenated outputs.

    The weights of each call are appended to a tuple in the collection `intermediates`,
    `attention_weights`, when that collection is mutable.

    With `decode=True` keys and values are stored in the collection `cache`. The first
    call only allocates the cache for its T tokens and stores the memory's keys and
    values, if there is a memory. Later calls pass the next tokens, which attend to
    themselves and to all earlier ones, and a memory of the same shape, whose values are
    not used. Too many tokens are a ValueError; under jit the output is NaN from that
    call on.

    >>> x_BTD = jnp.ones((2, 5, 16))
    >>> attention = MultiHeadAttention(num_heads=4)
    >>> attention.init_with_output(jax.random.key(0), x_BTD)[0].shape
    (2, 5, 16)

    Attributes:
        num_heads: number of heads N; divides the width D.
        dropout_rate: dropout on the attention weights, drawn from the rng "dropout".
        attention_implementation: "own": `dot_product_attention` of this package;
            "cudnn" (FlashAttention, bfloat16 on NVIDIA GPUs) and "xla": those of
            `jax.nn.dot_product_attention`. The last two cannot return or drop weights,
            so "own" is used whenever `intermediates` is mutable, dropout is active or
            `decode` is set; also for float64 and strict dtype promotion. cuDNN needs a
            head size divisible by 8. It is fastest with even T and S and no mask: odd
            ones are padded, and the padding is masked.
        dtype: dtype of the computation; parameters stay float32, the softmax runs in
            float32 or wider.
        dot_general: multiplies the matrices, but not those of JAX's attention; on a
            CPU with instructions for bfloat16, `vit_jax.bfloat16.dot_general` is
            faster than XLA's.
        qkv_bias: whether the projections of queries, keys and values have biases, as
            in the authors' code; the paper's U_qkv has none.
        normalize_qk: whether a LayerNorm follows the projections of queries and keys,
            in each head (arXiv:2302.05442, section 2.2); it keeps large models stable.
        norm_epsilon: added to the variance in these LayerNorms.

    References: arXiv:1706.03762, section 3.2.2; arXiv:2010.11929, eq. 5-8.
    """

    num_heads: int
    dropout_rate: float = 0.0
    attention_implementation: AttentionImplementation = "own"
    dtype: Any = jnp.float32
    dot_general: DotGeneral = jax.lax.dot_general
    qkv_bias: bool = True
    normalize_qk: bool = False
    norm_epsilon: float = 1e-6

    @nn.compact
    def __call__(
        self,
        query_BTD: Array,
        memory_BSD: Array | None = None,
        mask: Array | None = None,
        *,
        angle: Array | None = None,
        causal: bool = False,
        train: bool = False,
        decode: bool = False,
    ) -> Array:
        """Attend from the query tokens to the key/value tokens.

        Args:
            memory_BSD: key/value tokens, of any width; the query tokens
                (self-attention) by default.
            mask: bool, True where a query may attend: (T, S) for all alike, or four
                axes that broadcast to (B, N, T, S).
            angle: rotary position embedding, radians (S, K / 2), see `rotate`; the
                query tokens are the first T of the S. With `decode`, the rows of the
                new tokens alone. None for none.
            causal: whether query t attends to the keys 0 to t alone; "cudnn" then
                skips the others. With fewer queries than keys `causal_mask(T, S)` is
                another mask: its queries are the last positions.
            train: whether dropout is active.
            decode: whether to use the collection `cache`, see the class.

        Returns:
            out_BTD in the compute dtype.
        """
        source_BSD = query_BTD if memory_BSD is None else memory_BSD
        chex.assert_rank([query_BTD, source_BSD], 3)
        batch, _, width = query_BTD.shape
        chex.assert_shape(source_BSD, (batch, None, None))
        self._check(width, source_BSD, mask)
        query_BNTK = self._project("query", query_BTD, width)
        key_BNSK = self._project("key", source_BSD, width)
        value_BNSK = self._project("value", source_BSD, width)
        if self.normalize_qk:
            norm = functools.partial(LayerNorm, self.norm_epsilon, dtype=self.dtype)
            query_BNTK = norm(name="query_norm")(query_BNTK)
            key_BNSK = norm(name="key_norm")(key_BNSK)
        if angle is not None:
            query_BNTK = rotate(query_BNTK, angle[: query_BTD.shape[1]])
            key_BNSK = rotate(key_BNSK, angle)
        if decode and memory_BSD is None:
            update = self._update_cache(key_BNSK, value_BNSK)
            key_BNSK, value_BNSK, cache_mask_TS = update
            mask = combine_masks(cache_mask_TS, mask)
        elif decode:
            if causal:
                raise ValueError("causal must be False for a memory with decode")
            key_BNSK, value_BNSK = self._cached_memory(key_BNSK, value_BNSK)
        causal = causal and not decode  # The mask of the cache is causal already.
        heads = (query_BNTK, key_BNSK, value_BNSK, mask, causal)
        if self._uses_own_attention(train, decode):
            out_BTNK = self._attend(*heads, train=train)
        else:
            out_BTNK = self._attend_fused(*heads)
        concatenated_BTD = out_BTNK.reshape(query_BTD.shape)
        out_BTD = self._dense("out", width)(concatenated_BTD)
        chex.assert_shape(out_BTD, query_BTD.shape)
        return out_BTD

    def _uses_own_attention(self, train: bool, decode: bool) -> bool:
        """Return whether `dot_product_attention` of this module has to be used."""
        is_captured = self.is_mutable_collection("intermediates")
        is_dropped = train and self.dropout_rate > 0
        # JAX's softmax is float32, and its bfloat16 gradient needs standard promotion.
        promotion = jax.config.jax_numpy_dtype_promotion  # type: ignore (not declared)
        is_float64 = float32_or_wider(self.dtype) == jnp.float64
        is_refused = promotion == "strict" or is_float64
        is_asked_for = self.attention_implementation == "own"
        return is_asked_for or is_refused or is_captured or is_dropped or decode

    def _attend(
        self,
        query_BNTK: Array,
        key_BNSK: Array,
        value_BNSK: Array,
        mask: Array | None,
        causal: bool,
        *,
        train: bool,
    ) -> Array:
        """Attend by this module's function, and store the weights; return out_BTNK."""
        if causal:
            tokens = (query_BNTK.shape[2], key_BNSK.shape[2])
            mask = combine_masks(jnp.tri(*tokens, dtype=bool), mask)
        out_BNTK, weights_BNTS = dot_product_attention(
            query_BNTK,
            key_BNSK,
            value_BNSK,
            mask,
            dropout=Dropout(self.dropout_rate, deterministic=not train),
            return_weights=True,
            dot_general=self.dot_general,
        )
        self.sow("intermediates", "attention_weights", weights_BNTS)
        return out_BNTK.swapaxes(1, 2)

    def _attend_fused(
        self,
        query_BNTK: Array,
        key_BNSK: Array,
        value_BNSK: Array,
        mask: Array | None,
        causal: bool,
    ) -> Array:
        """Attend by one of JAX's functions, without dropout; return out_BTNK."""
        tokens = (query_BNTK.shape[2], key_BNSK.shape[2])
        # By cuDNN, JAX computes gradients for even numbers of tokens alone.
        is_cudnn = self.attention_implementation == "cudnn"
        more_T, more_S = ((0, n % 2 if is_cudnn else 0) for n in tokens)
        if mask is None and more_S != (0, 0):
            mask = jnp.ones(tokens, bool)
        if mask is not None:
            # cuDNN refuses one of a single row, such as a padding mask (B, 1, 1, S).
            lead = mask.shape[:-2] or (1, 1)
            mask = jnp.broadcast_to(mask, (*lead, *tokens))
            mask = jnp.pad(mask, ((0, 0), (0, 0), more_T, more_S))
        heads = zip(
            (query_BNTK, key_BNSK, value_BNSK), (more_T, more_S, more_S), strict=True
        )
        out_BTNK = jax.nn.dot_product_attention(
            *(
                jnp.pad(x.swapaxes(1, 2), ((0, 0), more, (0, 0), (0, 0)))
                for x, more in heads
            ),
            mask=mask,
            is_causal=causal,
            implementation=self.attention_implementation,  # type: ignore (not "own")
        )
        return out_BTNK[:, : tokens[0]]

    def _check(self, width: int, memory_BSD: Array, mask: Array | None) -> None:
        """Raise ValueError for a field, a memory or a mask that does not fit."""
        check_rates(self)
        check_at_least(1, width=width)
        if memory_BSD.shape[1] < 1:
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

    def _dense(self, name: str, width: int, **fields: Any) -> nn.Dense:
        """Make a dense layer."""
        fields |= {"dtype": self.dtype, "dot_general": self.dot_general}
        return make_dense(width, **fields, name=name)

    def _project(self, name: str, x_BTD: Array, width: int) -> Array:
        """Project the tokens to a width, and split it into heads: x_BNTK."""
        batch, length, _ = x_BTD.shape
        x_BTD = self._dense(name, width, use_bias=self.qkv_bias)(x_BTD)
        x_BTNK = x_BTD.reshape(batch, length, self.num_heads, width // self.num_heads)
        return x_BTNK.swapaxes(1, 2)

    def _cached_memory(self, key_BNSK: Array, value_BNSK: Array) -> tuple[Array, Array]:
        """Return the memory's keys and values as they were in the first call."""
        key = self.variable("cache", "past_key", lambda: key_BNSK)
        value = self.variable("cache", "past_value", lambda: value_BNSK)
        return key.value, value.value

    def _update_cache(
        self, key_BNTK: Array, value_BNTK: Array
    ) -> tuple[Array, Array, Array]:
        """Put the new tokens' keys and values into the cache, behind the earlier ones.

        Returns:
            key_BNSK, value_BNSK: the whole cache.
            cache_mask_TS: bool, which cached keys each new token may attend to.
        """
        has_cache = self.has_variable("cache", "index")
        key = self.variable("cache", "past_key", jnp.zeros_like, key_BNTK)
        value = self.variable("cache", "past_value", jnp.zeros_like, value_BNTK)
        index = self.variable("cache", "index", jnp.zeros, (), jnp.int32)
        num_tokens = key_BNTK.shape[2]
        if not has_cache:
            return key_BNTK, value_BNTK, causal_mask(num_tokens)
        is_full = self._is_full(num_tokens, index.value, key.value.shape[2])
        value_BNTK = jnp.where(is_full, jnp.nan, value_BNTK)
        append = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=2)
        key.value = append(key.value, key_BNTK, index.value)
        value.value = append(value.value, value_BNTK, index.value)
        position_T = index.value + jnp.arange(num_tokens, dtype=jnp.int32)
        index.value += num_tokens
        position_S = jnp.arange(key.value.shape[2], dtype=jnp.int32)
        cache_mask_TS = position_S[None, :] <= position_T[:, None]
        return key.value, value.value, cache_mask_TS

    def _is_full(self, num_tokens: int, index: Array, cache_size: int) -> Array:
        """Return whether the cache lacks room; raise ValueError where that is known."""
        num_past = int(index) if is_concrete(index) else 0
        if num_past + num_tokens > cache_size:
            raise ValueError(
                f"the cache of decode holds {cache_size} tokens, those of its first "
                f"call, got {num_tokens} more after {num_past}"
            )
        return index + num_tokens > cache_size
