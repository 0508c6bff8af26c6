"""Pool the tokens of an image into one: by weights, or by attention."""

from collections.abc import Callable
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.blocks import MlpBlock
from vit_jax.dtypes import float32_or_wider
from vit_jax.layers import LayerNorm, make_dense
from vit_jax.multi_head import MultiHeadAttention

Array = jax.Array


class SequencePool(nn.Module):
    """Average the tokens with weights that a dense layer gives them.

    The weights (B, T) of each call are appended to a tuple in the collection
    `intermediates`, `pool_weights`, when that collection is mutable.

    >>> x_BTD = jnp.ones((2, 3, 4))
    >>> SequencePool().init_with_output(jax.random.key(0), x_BTD)[0].shape
    (2, 4)

    Attributes:
        dtype: dtype of the output; parameters stay float32, the softmax over the tokens
            runs in float32 or wider.

    References: "Escaping the Big Data Paradigm with Compact Transformers",
    arXiv:2104.05704, "SeqPool".
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BTD: Array) -> Array:
        """Pool the tokens: out_BD in `dtype`."""
        chex.assert_rank(x_BTD, 3)
        score_BT1 = make_dense(1, dtype=self.dtype, name="score")(x_BTD)
        wide = float32_or_wider(self.dtype)
        weight_BT1 = nn.softmax(score_BT1.astype(wide), axis=1)
        self.sow("intermediates", "pool_weights", weight_BT1[..., 0])
        out_BD = (weight_BT1 * x_BTD.astype(wide)).sum(axis=1)
        chex.assert_shape(out_BD, (x_BTD.shape[0], x_BTD.shape[2]))
        return out_BD.astype(self.dtype)


class AttentionPool(nn.Module):
    """Attend to the tokens with one learned query, then apply an MLP ("MAP").

    >>> x_BTD = jnp.ones((2, 3, 4))
    >>> pool = AttentionPool(num_heads=2, mlp_dim=8)
    >>> pool.init_with_output(jax.random.key(0), x_BTD)[0].shape
    (2, 4)

    Attributes:
        num_heads: number of attention heads; divides the width.
        mlp_dim: width of the MLP's hidden layer; None for no MLP.
        activation: the MLP's nonlinearity.
        mlp_bias_init: initialiser of the MLP's biases.
        norm_epsilon: added to the variance in LayerNorm.
        dtype: dtype of the computation; parameters stay float32.

    References: Set Transformer, arXiv:1810.00825, section 3.2; in ViT: "Scaling Vision
    Transformers", arXiv:2106.04560, "Saving memory by removing [class] token".
    """

    num_heads: int
    mlp_dim: int | None
    activation: Callable[[Array], Array] = nn.gelu
    mlp_bias_init: nn.initializers.Initializer = nn.initializers.zeros
    norm_epsilon: float = 1e-6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BTD: Array) -> Array:
        """Pool the tokens: out_BD in `dtype`."""
        chex.assert_rank(x_BTD, 3)
        batch, _, width = x_BTD.shape
        init = nn.initializers.xavier_uniform()
        probe_11D = self.param("probe", init, (1, 1, width), jnp.float32)
        x_BTD = x_BTD.astype(self.dtype)
        # Sharded as the tokens are, on a mesh with explicit axes.
        query_B1D = jnp.zeros_like(x_BTD[:, :1]) + probe_11D.astype(self.dtype)
        attention = MultiHeadAttention(
            self.num_heads, dtype=self.dtype, name="attention"
        )
        y_B1D = attention(query_B1D, x_BTD)
        if self.mlp_dim is not None:
            norm = LayerNorm(epsilon=self.norm_epsilon, dtype=self.dtype, name="norm")
            mlp = MlpBlock(
                self.mlp_dim,
                activation=self.activation,
                bias_init=self.mlp_bias_init,
                dtype=self.dtype,
                name="mlp",
            )
            y_B1D += mlp(norm(y_B1D))
        out_BD = y_B1D[:, 0]
        chex.assert_shape(out_BD, (batch, width))
        return out_BD
