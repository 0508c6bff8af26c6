"""The Transformer: stacks of blocks, encoder and decoder together.

References: "Attention Is All You Need", arXiv:1706.03762.
"""

from collections.abc import Callable

import chex
import flax.linen as nn
import jax

from vit_jax.blocks import (
    DecoderBlock,
    EncoderBlock,
    TransformerModule,
    check_num_outputs,
)
from vit_jax.checks import check_at_least
from vit_jax.masks import causal_mask, combine_masks

Array = jax.Array


class Encoder(TransformerModule, kw_only=True):
    """A stack of encoder blocks: alone, what BERT and ViT are made of.

    Attributes:
        depth: number of blocks L.
        num_outputs: how many of the tokens are asked for, from the first on, so that
            the last block computes no others; None for all of them.
        final_norm: whether a LayerNorm stands at the end.
        remat: whether the backward pass computes a block's activations anew, instead
            of keeping those of all blocks: less memory, more time.
        scan: whether one block is compiled and run L times, for a deep model: its
            parameters, `blocks` instead of `block_0` and so on, lead with the axis L.
            All blocks then compute all tokens.

    References: arXiv:1706.03762, section 3.1; remat: arXiv:1604.06174.
    """

    depth: int
    num_outputs: int | None = None
    final_norm: bool = True
    remat: bool = False
    scan: bool = False

    @nn.compact
    def __call__(
        self, x_BTD: Array, mask: Array | None = None, *, train: bool = False
    ) -> Array:
        """Encode the tokens; see `EncoderBlock`."""
        chex.assert_rank(x_BTD, 3)
        batch, num_tokens, width = x_BTD.shape
        check_num_outputs(self.num_outputs, x_BTD)
        check_at_least(0, depth=self.depth)
        x_BTD = x_BTD.astype(self.dtype)

        def encode(block: EncoderBlock, x_BTD: Array, _: None) -> tuple[Array, None]:
            return block(x_BTD, mask, train=train), None

        if self.remat:
            encode = nn.remat(encode, prevent_cse=not self.scan)
        if self.scan:
            encode = nn.scan(
                encode,
                variable_axes={"params": 0, "intermediates": 0},
                split_rngs={"params": True, "dropout": True},
                length=self.depth,
            )
        names = [f"block_{layer}" for layer in range(self.depth)]
        for name in ["blocks"] if self.scan else names:
            block = EncoderBlock(
                num_outputs=self.num_outputs if name in names[-1:] else None,
                **self._shared_fields(),
                name=name,
            )
            x_BTD, _ = encode(block, x_BTD, None)
        out_BTD = x_BTD[:, : self.num_outputs]
        if self.final_norm:
            out_BTD = self._normalize("norm", out_BTD)
        chex.assert_shape(out_BTD, (batch, self.num_outputs or num_tokens, width))
        return out_BTD


class Decoder(TransformerModule, kw_only=True):
    """A stack of decoder blocks: called without a memory, what GPT is made of.

    Attributes:
        depth: number of blocks L.
        causal: whether each token sees only those before it and itself.
        final_norm: whether a LayerNorm stands at the end.

    References: arXiv:1706.03762, section 3.1.
    """

    depth: int
    causal: bool = True
    final_norm: bool = True

    @nn.compact
    def __call__(
        self,
        x_BTD: Array,
        memory_BSD: Array | None = None,
        mask: Array | None = None,
        memory_mask: Array | None = None,
        *,
        train: bool = False,
        decode: bool = False,
    ) -> Array:
        """Decode the tokens; see `DecoderBlock`. A mask adds to the causal one."""
        chex.assert_rank(x_BTD, 3)
        shape = x_BTD.shape
        if memory_BSD is not None:
            chex.assert_shape(memory_BSD, (shape[0], None, shape[2]))
        check_at_least(0, depth=self.depth)
        x_BTD = x_BTD.astype(self.dtype)
        if self.causal and not decode:
            mask = combine_masks(causal_mask(x_BTD.shape[1]), mask)
        for layer in range(self.depth):
            block = DecoderBlock(**self._shared_fields(), name=f"block_{layer}")
            x_BTD = block(
                x_BTD, memory_BSD, mask, memory_mask, train=train, decode=decode
            )
        out_BTD = self._normalize("norm", x_BTD) if self.final_norm else x_BTD
        chex.assert_shape(out_BTD, shape)
        return out_BTD


class Transformer(TransformerModule, kw_only=True):
    """Encoder and decoder together; the defaults are those of the paper.

    What `torch.nn.Transformer` calls `dropout` is both of the rates here.

    Attributes:
        encoder_depth: number of blocks of the encoder.
        decoder_depth: number of blocks of the decoder.
        causal: whether the decoder is.
        final_norm: whether encoder and decoder end in a LayerNorm. PyTorch's do; the
            paper's, whose blocks end in one already, do not.

    References: arXiv:1706.03762, figure 1.
    """

    num_heads: int = 8
    mlp_dim: int | None = 2048
    activation: Callable[[Array], Array] = nn.relu
    norm: str | None = "post"
    dropout_rate: float = 0.1
    encoder_depth: int = 6
    decoder_depth: int = 6
    causal: bool = True
    final_norm: bool = False

    def setup(self) -> None:
        """Make encoder and decoder, which can also be called one by one."""
        depths = (self.encoder_depth, self.decoder_depth)
        check_at_least(0, encoder_depth=depths[0], decoder_depth=depths[1])
        fields = {**self._shared_fields(), "final_norm": self.final_norm}
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
        """Encode the source, and decode the target with an eye on it.

        Args:
            source_BSD: embedded tokens, D = width.
            target_BTD: likewise, shifted so that token t may be told from those
                before it.
            source_mask: (S, S) or (B, N, S, S), True where a token may attend;
                `padding_mask` makes one, `combine_masks` joins several.
            target_mask: (T, T) or (B, N, T, T), on top of the causal one.
            memory_mask: (T, S) or (B, N, T, S), from the target to the source.
            train: whether dropout is active.

        Returns:
            out_BTD in the compute dtype.
        """
        chex.assert_rank([source_BSD, target_BTD], 3)
        memory_BSD = self.encoder(source_BSD, source_mask, train=train)
        out_BTD = self.decoder(
            target_BTD, memory_BSD, target_mask, memory_mask, train=train
        )
        chex.assert_shape(out_BTD, target_BTD.shape)
        return out_BTD
