"""The Transformer: encoder, decoder, and both together.

References: "Attention Is All You Need", arXiv:1706.03762.
"""

from collections.abc import Callable

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.blocks import (
    DecoderBlock,
    EncoderBlock,
    NormPlacement,
    TransformerModule,
)
from vit_jax.checks import check_at_least, check_num_outputs, check_rates

Array = jax.Array


class Encoder(TransformerModule, kw_only=True):
    """Encode tokens with a stack of encoder blocks, as in BERT and ViT.

    >>> encoder = Encoder(depth=1, num_heads=2, mlp_dim=8)
    >>> x_BTD = jax.numpy.ones((2, 3, 4))
    >>> encoder.init_with_output(jax.random.key(0), x_BTD)[0].shape
    (2, 3, 4)

    Attributes:
        depth: number of blocks L.
        num_outputs: number of tokens to return, from the first on; the last block
            computes no others. None for all.
        final_norm: whether a LayerNorm follows the last block. The paper's blocks, of
            `norm="post"`, need none.
        stochastic_depth_rate: stochastic depth (DropPath): share of the examples for
            which each sublayer of the last block is skipped in training. The rate rises
            linearly from 0 in the first block, as in timm; a single block has rate 0.
        remat: whether the backward pass recomputes each block's activations instead of
            storing them: less memory, more time.
        scan: whether one block is compiled and run L times, for a deep model: its
            parameters are named `blocks` instead of `block_0` and so on, and have a
            leading axis L. All blocks then compute all tokens.

    References: arXiv:1706.03762, section 3.1; remat: arXiv:1604.06174.
    """

    depth: int
    num_outputs: int | None = None
    final_norm: bool = True
    stochastic_depth_rate: float = 0.0
    remat: bool = False
    scan: bool = False

    @nn.compact
    def __call__(
        self,
        x_BTD: Array,
        mask: Array | None = None,
        *,
        angle: Array | None = None,
        train: bool = False,
    ) -> Array:
        """Encode the tokens, see `EncoderBlock`: out_BTD, T = `num_outputs`."""
        chex.assert_rank(x_BTD, 3)
        batch, num_tokens, width = x_BTD.shape
        check_num_outputs(self.num_outputs, num_tokens=num_tokens)
        check_at_least(0, depth=self.depth)
        check_rates(self)
        if self.stochastic_depth_rate > 0 and not self.residual:
            raise ValueError(
                "stochastic_depth_rate must be 0 without residual, as nothing would be "
                f"left of an example, got {self.stochastic_depth_rate}"
            )
        rate_L = None
        if train and self.stochastic_depth_rate > 0:
            rate_L = jnp.linspace(0, self.stochastic_depth_rate, self.depth)

        def encode(block: EncoderBlock, x_BTD: Array, rate: Array | None) -> Array:
            flags = {"stochastic_depth_rate": rate, "train": train}
            return block(x_BTD, mask, angle=angle, **flags)

        if self.remat:
            encode = nn.remat(encode, prevent_cse=not self.scan)
        run_blocks = self._scan_blocks if self.scan else self._run_blocks
        x_BTD = run_blocks(encode, x_BTD.astype(self.dtype), rate_L)
        out_BTD = x_BTD[:, : self.num_outputs]
        if self.final_norm:
            out_BTD = self._normalize("norm", out_BTD)
        chex.assert_shape(out_BTD, (batch, self.num_outputs or num_tokens, width))
        return out_BTD

    def _run_blocks(
        self, encode: Callable[..., Array], x_BTD: Array, rate_L: Array | None
    ) -> Array:
        """Apply one block after another; the last one computes the outputs alone."""
        for layer in range(self.depth):
            is_last = layer == self.depth - 1
            block = EncoderBlock(
                num_outputs=self.num_outputs if is_last else None,
                **self._shared_fields(),
                name=f"block_{layer}",
            )
            rate = None if rate_L is None else rate_L[layer]
            x_BTD = encode(block, x_BTD, rate)
        return x_BTD

    def _scan_blocks(
        self, encode: Callable[..., Array], x_BTD: Array, rate_L: Array | None
    ) -> Array:
        """Apply one block L times, each time with other parameters."""
        scan = nn.scan(
            lambda block, x_BTD, rate: (encode(block, x_BTD, rate), None),
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True, "dropout": True},
            length=self.depth,
        )
        block = EncoderBlock(**self._shared_fields(), name="blocks")
        out_BTD, _ = scan(block, x_BTD, rate_L)
        return out_BTD


class Decoder(TransformerModule, kw_only=True):
    """Decode tokens with a stack of decoder blocks; without a memory as in GPT.

    >>> decoder = Decoder(depth=1, num_heads=2, mlp_dim=8)
    >>> x_BTD = jax.numpy.ones((2, 3, 4))
    >>> decoder.init_with_output(jax.random.key(0), x_BTD)[0].shape
    (2, 3, 4)

    Attributes:
        depth: number of blocks L.
        causal: whether each token attends only to itself and to earlier tokens.
        final_norm: whether a LayerNorm follows the last block.
        remat: see `Encoder`.

    References: arXiv:1706.03762, section 3.1.
    """

    depth: int
    causal: bool = True
    final_norm: bool = True
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        x_BTD: Array,
        memory_BSD: Array | None = None,
        mask: Array | None = None,
        memory_mask: Array | None = None,
        *,
        angle: Array | None = None,
        train: bool = False,
        decode: bool = False,
    ) -> Array:
        """Decode the tokens.

        Args:
            memory_BSD: the encoder's output; without it there is no cross-attention.
            mask: for self-attention, joined with the causal one.
            memory_mask: for cross-attention.
            angle: for self-attention, see `MultiHeadAttention`.
            train: whether dropout is active.
            decode: whether to use the cache, see `MultiHeadAttention`.

        Returns:
            out_BTD in the compute dtype.
        """
        chex.assert_rank([x_BTD, x_BTD if memory_BSD is None else memory_BSD], 3)
        check_at_least(0, depth=self.depth)
        check_rates(self)
        flags = {"train": train, "decode": decode, "causal": self.causal}

        def apply(block: DecoderBlock, x_BTD: Array) -> Array:
            masks = (mask, memory_mask)
            return block(x_BTD, memory_BSD, *masks, angle=angle, **flags)

        if self.remat and not decode:
            apply = nn.remat(apply)
        out_BTD = x_BTD.astype(self.dtype)
        for layer in range(self.depth):
            block = DecoderBlock(**self._shared_fields(), name=f"block_{layer}")
            out_BTD = apply(block, out_BTD)
        if self.final_norm:
            out_BTD = self._normalize("norm", out_BTD)
        chex.assert_equal_shape([out_BTD, x_BTD])
        return out_BTD


class Transformer(TransformerModule, kw_only=True):
    """Encode a source and decode a target.

    The defaults are those of the paper, except that dropout is also applied inside the
    MLPs, as in PyTorch. The argument `dropout` of `torch.nn.Transformer` sets both
    rates of this class.

    >>> model = Transformer(num_heads=2, mlp_dim=8, encoder_depth=1, decoder_depth=1)
    >>> source_BSD, target_BTD = (jax.numpy.ones((2, n, 4)) for n in (5, 3))
    >>> model.init_with_output(jax.random.key(0), source_BSD, target_BTD)[0].shape
    (2, 3, 4)

    Attributes:
        encoder_depth: number of blocks of the encoder.
        decoder_depth: number of blocks of the decoder.
        causal: whether the decoder's self-attention is causal.
        final_norm: whether encoder and decoder end in a LayerNorm; None: exactly if
            `norm` is "pre". PyTorch's always do; the paper's, whose blocks end in one
            already, do not.
        remat: see `Encoder`.

    References: arXiv:1706.03762, figure 1.
    """

    num_heads: int = 8
    mlp_dim: int | None = 2048
    activation: Callable[[Array], Array] = nn.relu
    norm: NormPlacement = "post"
    dropout_rate: float = 0.1
    encoder_depth: int = 6
    decoder_depth: int = 6
    causal: bool = True
    final_norm: bool | None = None
    remat: bool = False

    @property
    def has_final_norm(self) -> bool:
        """Whether encoder and decoder end in a LayerNorm."""
        return self.norm == "pre" if self.final_norm is None else self.final_norm

    def setup(self) -> None:
        """Make encoder and decoder, which can also be called separately."""
        depths = (self.encoder_depth, self.decoder_depth)
        check_at_least(0, encoder_depth=depths[0], decoder_depth=depths[1])
        fields = self._shared_fields()
        fields |= {"final_norm": self.has_final_norm, "remat": self.remat}
        self.encoder = Encoder(depth=self.encoder_depth, **fields)
        self.decoder = Decoder(depth=self.decoder_depth, causal=self.causal, **fields)

    def __call__(
        self,
        source_BSD: Array,
        target_BTD: Array,
        source_mask: Array | None = None,
        target_mask: Array | None = None,
        memory_mask: Array | None = None,
        *,
        train: bool = False,
    ) -> Array:
        """Encode the source, and decode the target with cross-attention to it.

        Args:
            source_BSD: embedded tokens.
            target_BTD: embedded tokens, shifted by one so that none sees its successor.
            source_mask: (S, S), or four axes that broadcast to (B, N, S, S), True where
                a token may attend.
            target_mask: likewise to (B, N, T, T), joined with the causal one.
            memory_mask: likewise to (B, N, T, S), from the target to the source. A
                padding mask of the source has to be given here, too.
            train: whether dropout is active.

        Returns:
            out_BTD in the compute dtype.
        """
        chex.assert_rank([source_BSD, target_BTD], 3)
        chex.assert_equal_shape_prefix([source_BSD, target_BTD], 1)
        memory_BSD = self.encoder(source_BSD, source_mask, train=train)
        out_BTD = self.decoder(
            target_BTD, memory_BSD, target_mask, memory_mask, train=train
        )
        chex.assert_shape(out_BTD, target_BTD.shape)
        return out_BTD
