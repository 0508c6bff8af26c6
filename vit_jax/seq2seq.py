"""Sequence-to-sequence Transformer: embeddings, positions, logits.

References: "Attention Is All You Need", arXiv:1706.03762.
"""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.blocks import NormPlacement
from vit_jax.checks import check_at_least, check_range, check_rates
from vit_jax.dtypes import float32_or_wider
from vit_jax.layers import DotGeneral, Dropout, make_dense
from vit_jax.multi_head import AttentionImplementation
from vit_jax.position import sinusoidal_position
from vit_jax.transformer import Transformer

Array = jax.Array


class Seq2SeqTransformer(nn.Module):
    """Predict target tokens from source tokens with a Transformer.

    Unlike in the paper, the output layer has weights of its own, unless
    `logits_via_embedding` is set, and LayerNorm comes first; `norm="post"` is the
    paper's order.

    Source and target share one vocabulary and one embedding. A token outside it is a
    ValueError where its value is known; under jit the logits of its sequence are NaN.

    >>> model = Seq2SeqTransformer(8, width=4, num_heads=2, mlp_dim=8,
    ...     encoder_depth=1, decoder_depth=1)
    >>> source_BS, target_BT = jnp.array([[1, 2, 3]]), jnp.array([[7, 1]])
    >>> model.init_with_output(jax.random.key(0), source_BS, target_BT)[0].shape
    (1, 2, 8)

    Attributes:
        vocab_size: number of different tokens V.
        width: width D of an embedded token, even.
        num_heads: number of attention heads; divides the width.
        mlp_dim: width F of the MLPs' hidden layers.
        encoder_depth: number of blocks of the encoder.
        decoder_depth: number of blocks of the decoder.
        norm: "pre", "post" or None, see `TransformerModule`.
        dropout_rate: dropout on embedded tokens, sublayers and inside the MLPs.
        attention_dropout_rate: dropout on the attention weights.
        dtype: dtype of the computation; parameters stay float32.
        attention_implementation: "own", this project's; or JAX's "cudnn"
            (FlashAttention, bfloat16 on NVIDIA GPUs) or "xla".
        logits_via_embedding: whether the embedding is the output layer's kernel, too;
            it then has no bias.
        remat: whether the backward pass recomputes each block's activations.
        dot_general: multiplies the matrices of the blocks; see `MultiHeadAttention`.

    References: arXiv:1706.03762, figure 1 and section 3.4.
    """

    vocab_size: int
    width: int
    num_heads: int
    mlp_dim: int
    encoder_depth: int
    decoder_depth: int
    norm: NormPlacement = "pre"
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    dtype: Any = jnp.float32
    attention_implementation: AttentionImplementation = "own"
    logits_via_embedding: bool = False
    remat: bool = False
    dot_general: DotGeneral = jax.lax.dot_general

    def setup(self) -> None:
        """Make the parts that encoding and decoding share."""
        check_rates(self)
        check_at_least(
            1, vocab_size=self.vocab_size, width=self.width, mlp_dim=self.mlp_dim
        )
        self.embedding = nn.Embed(self.vocab_size, self.width, dtype=self.dtype)
        self.dropout = Dropout(self.dropout_rate)
        self.transformer = Transformer(
            num_heads=self.num_heads,
            mlp_dim=self.mlp_dim,
            encoder_depth=self.encoder_depth,
            decoder_depth=self.decoder_depth,
            norm=self.norm,
            dropout_rate=self.dropout_rate,
            attention_dropout_rate=self.attention_dropout_rate,
            attention_implementation=self.attention_implementation,
            remat=self.remat,
            dtype=self.dtype,
            dot_general=self.dot_general,
        )
        if not self.logits_via_embedding:
            dtype = float32_or_wider(self.dtype)
            self.head = make_dense(self.vocab_size, dtype=dtype)

    def __call__(
        self,
        source_BS: Array,
        target_BT: Array,
        source_mask: Array | None = None,
        target_mask: Array | None = None,
        *,
        train: bool = False,
    ) -> Array:
        """Compute the logits of each target token's successor.

        Args:
            source_BS: token numbers in [0, V), S >= 1.
            target_BT: the tokens known so far, a start token first.
            source_mask: (B, 1, 1, S), True for real tokens, see `padding_mask`.
            target_mask: see `Decoder`; targets padded at the end need none, as no token
                attends to later ones.
            train: whether dropout is active (needs the rng "dropout").

        Returns:
            logits_BTV: float32, or float64 where that is the compute dtype.
        """
        chex.assert_rank([source_BS, target_BT], 2)
        chex.assert_type([source_BS, target_BT], int)
        memory_BSD = self.encode(source_BS, source_mask, train=train)
        logits_BTV = self.decode(
            target_BT, memory_BSD, source_mask, target_mask, train=train
        )
        chex.assert_shape(logits_BTV, (*target_BT.shape, self.vocab_size))
        return logits_BTV

    def encode(
        self, source_BS: Array, source_mask: Array | None = None, *, train: bool = False
    ) -> Array:
        """Encode the source: memory_BSD in the compute dtype."""
        chex.assert_rank(source_BS, 2)
        chex.assert_type(source_BS, int)
        self._check_mask(source_mask, source_BS.shape)
        x_BSD = self._embed_all("source_BS", source_BS, train=train)
        memory_BSD = self.transformer.encoder(x_BSD, source_mask, train=train)
        chex.assert_shape(memory_BSD, (*source_BS.shape, self.width))
        return memory_BSD

    def decode(
        self,
        target_BT: Array,
        memory_BSD: Array,
        source_mask: Array | None = None,
        target_mask: Array | None = None,
        *,
        train: bool = False,
    ) -> Array:
        """Compute the logits of each target token's successor, given the memory."""
        chex.assert_rank(target_BT, 2)
        chex.assert_type(target_BT, int)
        chex.assert_shape(memory_BSD, (target_BT.shape[0], None, self.width))
        self._check_mask(source_mask, memory_BSD.shape[:2])
        x_BTD = self._embed_all("target_BT", target_BT, train=train)
        x_BTD = self.transformer.decoder(
            x_BTD, memory_BSD, target_mask, source_mask, train=train
        )
        logits_BTV = self._logits(x_BTD)
        chex.assert_shape(logits_BTV, (*target_BT.shape, self.vocab_size))
        return logits_BTV

    def init_cache(self, target_BT: Array, memory_BSD: Array) -> None:
        """Prepare `decode_next` for targets of T tokens: fills the collection `cache`.

        Args:
            target_BT: any tokens; only the shape matters.
            memory_BSD: output of `encode`.
        """
        chex.assert_rank(target_BT, 2)
        chex.assert_shape(memory_BSD, (target_BT.shape[0], None, self.width))
        x_BTD = self._embed_all("target_BT", jnp.zeros_like(target_BT), train=False)
        self.transformer.decoder(x_BTD, memory_BSD, decode=True)

    def _check_mask(self, source_mask: Array | None, shape: tuple[int, ...]) -> None:
        """Assert that a mask has one element for each source token, shape (B, S)."""
        if source_mask is not None:
            chex.assert_shape(source_mask, (shape[0], 1, 1, shape[1]))
            chex.assert_type(source_mask, bool)

    def decode_next(
        self,
        token_B: Array,
        position_1D: Array,
        memory_BSD: Array,
        source_mask: Array | None = None,
    ) -> Array:
        """Compute the next token's logits from the newest token and the cache.

        Args:
            token_B: the newest token of each sequence.
            position_1D: its row of `sinusoidal_position`.
            memory_BSD: output of `encode`; its keys and values are in the cache.
            source_mask: as in a call.

        Returns:
            logits_BV: float32, or float64 where that is the compute dtype.

        Raises:
            ValueError: if the cache is full. Under jit the logits are NaN from then on.
        """
        chex.assert_rank(token_B, 1)
        chex.assert_shape(position_1D, (1, self.width))
        chex.assert_shape(memory_BSD, (token_B.shape[0], None, self.width))
        self._check_mask(source_mask, memory_BSD.shape[:2])
        check_range("token_B", token_B, 0, self.vocab_size - 1)
        x_B1D = self._embed(token_B[:, None], position_1D, train=False)
        x_B1D = self.transformer.decoder(
            x_B1D, memory_BSD, memory_mask=source_mask, decode=True
        )
        logits_B1V = self._logits(x_B1D)
        chex.assert_shape(logits_B1V, (token_B.shape[0], 1, self.vocab_size))
        return logits_B1V[:, 0]

    def _embed_all(self, name: str, token_BT: Array, *, train: bool) -> Array:
        """Check and embed whole sequences."""
        num_tokens = token_BT.shape[1]
        if num_tokens < 1:
            raise ValueError(
                f"{name} must have at least 1 token a sequence, got shape "
                f"{token_BT.shape}"
            )
        check_range(name, token_BT, 0, self.vocab_size - 1)
        position_TD = sinusoidal_position(num_tokens, self.width, dtype=self.dtype)
        return self._embed(token_BT, position_TD, train=train)

    def _embed(self, token_BT: Array, position_TD: Array, *, train: bool) -> Array:
        """Embed the tokens and add their position."""
        token_BT = token_BT.astype(jnp.int32)  # V may be beyond uint8
        x_BTD = self.embedding(token_BT) * self.width**0.5
        # The look-up alone would count negative numbers from the vocabulary's end.
        is_known_BT = (token_BT >= 0) & (token_BT < self.vocab_size)
        x_BTD = jnp.where(is_known_BT[..., None], x_BTD, jnp.nan)
        x_BTD = x_BTD + position_TD[None].astype(self.dtype)
        return self.dropout(x_BTD, deterministic=not train)

    def _logits(self, x_BTD: Array) -> Array:
        x_BTD = x_BTD.astype(float32_or_wider(self.dtype))
        if not self.logits_via_embedding:
            return self.head(x_BTD)
        kernel_VD = self.embedding.embedding.astype(x_BTD.dtype)
        return jnp.einsum("BTD,VD->BTV", x_BTD, kernel_VD)
