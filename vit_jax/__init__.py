"""Attention, the Transformer and the Vision Transformer, in JAX and Flax Linen."""

from vit_jax.attention import dot_product_attention
from vit_jax.blocks import DecoderBlock, EncoderBlock, MlpBlock
from vit_jax.decoding import greedy_decode
from vit_jax.layers import Dropout, LayerNorm, dropout, layer_norm, stochastic_depth
from vit_jax.masks import causal_mask, combine_masks, padding_mask
from vit_jax.multi_head import MultiHeadAttention
from vit_jax.pooling import AttentionPool, SequencePool
from vit_jax.position import (
    rotary_angles,
    rotary_angles_1d,
    rotate,
    sincos2d_position,
    sinusoidal_position,
)
from vit_jax.presets import (
    ViT_B16,
    ViT_B32,
    ViT_H14,
    ViT_L16,
    ViT_S16,
    ViT_S32,
    ViT_Ti16,
)
from vit_jax.seq2seq import Seq2SeqTransformer
from vit_jax.stem import ConvStem, patchify
from vit_jax.transformer import Decoder, Encoder, Transformer
from vit_jax.vit import ViT

__all__ = [
    "AttentionPool",
    "ConvStem",
    "Decoder",
    "DecoderBlock",
    "Dropout",
    "Encoder",
    "EncoderBlock",
    "LayerNorm",
    "MlpBlock",
    "MultiHeadAttention",
    "Seq2SeqTransformer",
    "SequencePool",
    "Transformer",
    "ViT",
    "ViT_B16",
    "ViT_B32",
    "ViT_H14",
    "ViT_L16",
    "ViT_S16",
    "ViT_S32",
    "ViT_Ti16",
    "causal_mask",
    "combine_masks",
    "dot_product_attention",
    "dropout",
    "greedy_decode",
    "layer_norm",
    "padding_mask",
    "patchify",
    "rotary_angles",
    "rotary_angles_1d",
    "rotate",
    "sincos2d_position",
    "sinusoidal_position",
    "stochastic_depth",
]
