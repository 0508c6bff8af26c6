"""Blocks of the Transformer: MLP, encoder block, decoder block.

References: "Attention Is All You Need", arXiv:1706.03762.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.checks import (
    check_at_least,
    check_choice,
    check_num_outputs,
    check_positive,
    check_rates,
)
from vit_jax.layers import DotGeneral, Dropout, LayerNorm, make_dense, stochastic_depth
from vit_jax.multi_head import AttentionImplementation, MultiHeadAttention

Array = jax.Array
NormPlacement = Literal["pre", "post"] | None


class MlpBlock(nn.Module):
    """Apply two dense layers with a nonlinearity between them to the last axis.

    >>> x_BTD = jnp.ones((2, 3, 4))
    >>> MlpBlock(mlp_dim=8).init_with_output(jax.random.key(0), x_BTD)[0].shape
    (2, 3, 4)

    Attributes:
        mlp_dim: width F of the hidden layer.
        dropout_rate: dropout after the nonlinearity.
        activation: the nonlinearity, by default the tanh form of GELU.
        bias_init: initialiser of the biases.
        dtype: dtype of the computation; parameters stay float32.
        dot_general: multiplies the matrices; see `MultiHeadAttention`.

    References: arXiv:1706.03762, eq. 2.
    """

    mlp_dim: int
    dropout_rate: float = 0.0
    activation: Callable[[Array], Array] = nn.gelu
    bias_init: nn.initializers.Initializer = nn.initializers.zeros
    dtype: Any = jnp.float32
    dot_general: DotGeneral = jax.lax.dot_general

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Apply the MLP to the last axis of (..., D).

        Returns:
            An array of x's shape, in the compute dtype.
        """
        chex.assert_shape(x, (..., None))
        check_at_least(1, mlp_dim=self.mlp_dim)
        check_rates(self)
        dropout = Dropout(self.dropout_rate, deterministic=not train)
        dense = functools.partial(
            make_dense,
            dtype=self.dtype,
            bias_init=self.bias_init,
            dot_general=self.dot_general,
        )
        hidden = dropout(self.activation(dense(self.mlp_dim, name="hidden")(x)))
        out = dense(x.shape[-1], name="out")(hidden)
        chex.assert_equal_shape([out, x])
        return out


class TransformerModule(nn.Module, kw_only=True):
    """Fields and sublayers that the blocks and their stacks have in common.

    Attributes:
        num_heads: number of attention heads N; divides the width D.
        mlp_dim: width F of the MLPs' hidden layers; None for no MLPs at all.
        activation: the MLPs' nonlinearity.
        mlp_bias_init: initialiser of the MLPs' biases.
        norm: position of LayerNorm: "pre", before each sublayer (arXiv:2010.11929),
            "post", after its residual (arXiv:1706.03762), or None for no LayerNorm.
        residual: whether a sublayer's own input, not the normalised one, is added to
            its output.
        dropout_rate: dropout on each sublayer's output and inside the MLPs.
        attention_dropout_rate: dropout on the attention weights.
        attention_implementation, qkv_bias, normalize_qk: see `MultiHeadAttention`.
        layer_scale: initial value of a factor for each channel of a sublayer's output,
            which is learned; None for no such factor (arXiv:2103.17239, section 2.1).
        norm_epsilon: added to the variance in LayerNorm.
        dtype: dtype of the computation; parameters stay float32, LayerNorm statistics
            run in float32 or wider.
        dot_general: multiplies the matrices; see `MultiHeadAttention`.
    """

    num_heads: int
    mlp_dim: int | None
    activation: Callable[[Array], Array] = nn.gelu
    mlp_bias_init: nn.initializers.Initializer = nn.initializers.zeros
    norm: NormPlacement = "pre"
    residual: bool = True
    qkv_bias: bool = True
    normalize_qk: bool = False
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    attention_implementation: AttentionImplementation = "own"
    layer_scale: float | None = None
    norm_epsilon: float = 1e-6
    dtype: Any = jnp.float32
    dot_general: DotGeneral = jax.lax.dot_general

    def _shared_fields(self) -> dict[str, Any]:
        """Return the fields above as keyword arguments of a part."""
        names = {field.name for field in dataclasses.fields(TransformerModule)}
        return {name: getattr(self, name) for name in names - {"parent", "name"}}

    def _normalize(self, name: str, x_BTD: Array) -> Array:
        """Apply a LayerNorm, or nothing if `norm` is None."""
        check_choice("norm", self.norm, ("pre", "post", None))
        check_positive(norm_epsilon=self.norm_epsilon)
        if self.norm is None:
            return x_BTD
        return LayerNorm(self.norm_epsilon, dtype=self.dtype, name=name)(x_BTD)

    def _sublayer(
        self,
        name: str,
        sublayer: Callable[[Array], Array],
        x_BTD: Array,
        train: bool,
        stochastic_depth_rate: Array | None = None,
    ) -> Array:
        """Compute x + f(LayerNorm(x)), or with post-norm LayerNorm(x + f(x)).

        Layer scale, dropout and stochastic depth act on the output of the sublayer f.
        It may return fewer tokens than it gets: the first ones.
        """
        normalize = functools.partial(self._normalize, f"{name}_norm")
        y_BTD = sublayer(x_BTD if self.norm == "post" else normalize(x_BTD))
        if self.layer_scale is not None:
            init = nn.initializers.constant(self.layer_scale)
            shape = y_BTD.shape[-1:]
            scale_D = self.param(f"{name}_scale", init, shape, jnp.float32)
            y_BTD *= scale_D[None, None].astype(y_BTD.dtype)
        y_BTD = Dropout(self.dropout_rate, deterministic=not train)(y_BTD)
        if train and stochastic_depth_rate is not None:
            key = self.make_rng("dropout")
            y_BTD = stochastic_depth(key, y_BTD, stochastic_depth_rate)
        y_BTD = x_BTD[:, : y_BTD.shape[1]] + y_BTD if self.residual else y_BTD
        return normalize(y_BTD) if self.norm == "post" else y_BTD

    def _make_attention(self, name: str) -> MultiHeadAttention:
        """Make the attention of a sublayer."""
        return MultiHeadAttention(
            self.num_heads,
            qkv_bias=self.qkv_bias,
            normalize_qk=self.normalize_qk,
            norm_epsilon=self.norm_epsilon,
            dropout_rate=self.attention_dropout_rate,
            attention_implementation=self.attention_implementation,
            dtype=self.dtype,
            dot_general=self.dot_general,
            name=name,
        )

    def _mlp_sublayer(
        self, x_BTD: Array, train: bool, stochastic_depth_rate: Array | None = None
    ) -> Array:
        """Apply the MLP sublayer, or nothing if `mlp_dim` is None."""
        check_at_least(1, mlp_dim=self.mlp_dim)
        if self.mlp_dim is None:
            return x_BTD
        mlp = MlpBlock(
            self.mlp_dim,
            dropout_rate=self.dropout_rate,
            activation=self.activation,
            bias_init=self.mlp_bias_init,
            dtype=self.dtype,
            dot_general=self.dot_general,
            name="mlp",
        )
        mlp = functools.partial(mlp, train=train)
        return self._sublayer("mlp", mlp, x_BTD, train, stochastic_depth_rate)


class EncoderBlock(TransformerModule, kw_only=True):
    """Apply self-attention, then an MLP, each with LayerNorm and residual.

    >>> block, x_BTD = EncoderBlock(num_heads=2, mlp_dim=8), jnp.ones((2, 3, 4))
    >>> block.init_with_output(jax.random.key(0), x_BTD)[0].shape
    (2, 3, 4)

    Attributes:
        num_outputs: number of tokens to encode, from the first on, each attending to
            all tokens; None for all.

    References: arXiv:1706.03762, section 3.1; arXiv:2010.11929, eq. 2 and 3.
    """

    num_outputs: int | None = None

    @nn.compact
    def __call__(
        self,
        x_BTD: Array,
        mask: Array | None = None,
        *,
        angle: Array | None = None,
        stochastic_depth_rate: Array | None = None,
        train: bool = False,
    ) -> Array:
        """Apply the block to the tokens.

        Args:
            mask: see `MultiHeadAttention`.
            angle: rotary position embedding (T, K / 2), see `MultiHeadAttention`.
            stochastic_depth_rate: share of the examples for which each sublayer is
                skipped in training, a scalar; see `stochastic_depth`.
            train: whether dropout and stochastic depth are active.

        Returns:
            out_BTD in the compute dtype, T = `num_outputs`.
        """
        chex.assert_rank(x_BTD, 3)
        check_num_outputs(self.num_outputs, num_tokens=x_BTD.shape[1])
        check_rates(self)
        x_BTD = x_BTD.astype(self.dtype)
        attention = self._make_attention("attention")
        if mask is not None and self.num_outputs is not None:
            mask = mask[..., : self.num_outputs, :]

        def attend(y_BSD: Array) -> Array:
            query_BTD = y_BSD[:, : self.num_outputs]
            return attention(query_BTD, y_BSD, mask, angle=angle, train=train)

        flags = (train, stochastic_depth_rate)
        out_BTD = self._sublayer("attention", attend, x_BTD, *flags)
        out_BTD = self._mlp_sublayer(out_BTD, *flags)
        chex.assert_shape(out_BTD, x_BTD[:, : self.num_outputs].shape)
        return out_BTD


class DecoderBlock(TransformerModule, kw_only=True):
    """Apply self-attention, cross-attention if there is a memory, then an MLP.

    >>> block, x_BTD = DecoderBlock(num_heads=2, mlp_dim=8), jnp.ones((2, 3, 4))
    >>> block.init_with_output(jax.random.key(0), x_BTD, jnp.ones((2, 5, 4)))[0].shape
    (2, 3, 4)

    References: arXiv:1706.03762, section 3.1.
    """

    @nn.compact
    def __call__(
        self,
        x_BTD: Array,
        memory_BSD: Array | None = None,
        mask: Array | None = None,
        memory_mask: Array | None = None,
        *,
        angle: Array | None = None,
        causal: bool = False,
        train: bool = False,
        decode: bool = False,
    ) -> Array:
        """Apply the block to the tokens: out_BTD in the compute dtype.

        Args:
            memory_BSD: the encoder's output; without it there is no cross-attention.
            mask: for self-attention, as are `angle` and `causal`; see
                `MultiHeadAttention`.
            memory_mask: for cross-attention.
            decode: see `MultiHeadAttention`.
        """
        chex.assert_rank([x_BTD, x_BTD if memory_BSD is None else memory_BSD], 3)
        check_rates(self)
        if memory_BSD is None and self.has_variable("params", "cross_attention"):
            raise ValueError("memory_BSD must be given: the block has cross-attention")
        x_BTD = x_BTD.astype(self.dtype)
        flags: dict[str, Any] = {"train": train, "decode": decode}

        def attend(y_BTD: Array) -> Array:
            attention = self._make_attention("attention")
            return attention(y_BTD, mask=mask, angle=angle, causal=causal, **flags)

        def cross_attend(y_BTD: Array) -> Array:
            attention = self._make_attention("cross_attention")
            return attention(y_BTD, memory_BSD, memory_mask, **flags)

        out_BTD = self._sublayer("attention", attend, x_BTD, train)
        if memory_BSD is not None:
            out_BTD = self._sublayer("cross_attention", cross_attend, out_BTD, train)
        out_BTD = self._mlp_sublayer(out_BTD, train)
        chex.assert_shape(out_BTD, x_BTD.shape)
        return out_BTD
