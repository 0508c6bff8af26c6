"""The Transformer's blocks.

References: arXiv:1706.03762; the pre-norm form is that of arXiv:2010.11929.
"""

from collections.abc import Callable
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.attention import MultiHeadAttention
from vit_jax.dense import Dense

Array = jax.Array


class MlpBlock(nn.Module):
    """Two dense layers with a nonlinearity between them, on each token alone.

    Attributes:
        hidden_size: width F of the hidden layer.
        dropout_rate: dropout after the nonlinearity and on the output.
        activation: the nonlinearity; by default GELU in its tanh form, as in the
            ViT authors' code.
        dtype: dtype of the computation; parameters stay float32.

    References: arXiv:1706.03762, eq. 2.
    """

    hidden_size: int
    dropout_rate: float = 0.0
    activation: Callable[[Array], Array] = nn.gelu
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BTD: Array, *, train: bool = False) -> Array:
        """Transform every token.

        Returns:
            out_BTD in the compute dtype.
        """
        chex.assert_rank(x_BTD, 3)
        dropout = nn.Dropout(self.dropout_rate, deterministic=not train)
        h_BTF = Dense(self.hidden_size, dtype=self.dtype, name="hidden")(x_BTD)
        h_BTF = dropout(self.activation(h_BTF))
        out_BTD = Dense(x_BTD.shape[-1], dtype=self.dtype, name="out")(h_BTF)
        chex.assert_shape(out_BTD, x_BTD.shape)
        return nn.Dropout(self.dropout_rate, deterministic=not train)(out_BTD)


class EncoderBlock(nn.Module):
    """Self-attention, then an MLP, each with LayerNorm before and a residual around.

    The residual is the block's own input, not the normalised one.

    Attributes:
        num_heads: number of attention heads; divides the width D.
        mlp_size: width F of the MLP's hidden layer.
        dropout_rate: dropout on the outputs of attention and MLP and inside the MLP.
        attention_dropout_rate: dropout on the attention weights.
        dtype: dtype of the computation; parameters and LayerNorm stay float32.

    References: arXiv:2010.11929, eq. 2 and 3.
    """

    num_heads: int
    mlp_size: int
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x_BTD: Array,
        mask: Array | None = None,
        *,
        train: bool = False,
    ) -> Array:
        """Encode the tokens once.

        Args:
            mask: see `MultiHeadAttention`.

        Returns:
            out_BTD in the compute dtype.
        """
        chex.assert_rank(x_BTD, 3)
        y_BTD = nn.LayerNorm(dtype=self.dtype, name="attention_norm")(x_BTD)
        y_BTD = MultiHeadAttention(
            self.num_heads,
            dropout_rate=self.attention_dropout_rate,
            dtype=self.dtype,
            name="attention",
        )(y_BTD, mask=mask, train=train)
        y_BTD = nn.Dropout(self.dropout_rate, deterministic=not train)(y_BTD)
        x_BTD = x_BTD + y_BTD

        y_BTD = nn.LayerNorm(dtype=self.dtype, name="mlp_norm")(x_BTD)
        y_BTD = MlpBlock(
            self.mlp_size,
            dropout_rate=self.dropout_rate,
            dtype=self.dtype,
            name="mlp",
        )(y_BTD, train=train)
        out_BTD = x_BTD + y_BTD
        chex.assert_shape(out_BTD, x_BTD.shape)
        return out_BTD
