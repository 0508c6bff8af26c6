"""Attention, the Transformer and the Vision Transformer, in JAX and Flax Linen."""

from vit_jax.attention import MultiHeadAttention as MultiHeadAttention
from vit_jax.attention import dot_product_attention as dot_product_attention
from vit_jax.blocks import DecoderBlock as DecoderBlock
from vit_jax.blocks import EncoderBlock as EncoderBlock
from vit_jax.blocks import MlpBlock as MlpBlock
from vit_jax.masks import causal_mask as causal_mask
from vit_jax.masks import combine_masks as combine_masks
from vit_jax.masks import padding_mask as padding_mask
from vit_jax.seq2seq import Seq2SeqTransformer as Seq2SeqTransformer
from vit_jax.seq2seq import greedy_decode as greedy_decode
from vit_jax.seq2seq import sinusoidal_position as sinusoidal_position
from vit_jax.transformer import Decoder as Decoder
from vit_jax.transformer import Encoder as Encoder
from vit_jax.transformer import Transformer as Transformer
from vit_jax.vit import ViT as ViT
from vit_jax.vit import ViT_B16 as ViT_B16
from vit_jax.vit import ViT_B32 as ViT_B32
from vit_jax.vit import ViT_L16 as ViT_L16
from vit_jax.vit import ViT_S16 as ViT_S16
from vit_jax.vit import ViT_Ti16 as ViT_Ti16
from vit_jax.vit import patchify as patchify
