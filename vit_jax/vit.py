"""The Vision Transformer.

References: "An Image is Worth 16x16 Words", arXiv:2010.11929.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, get_args

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.blocks import NormPlacement
from vit_jax.checks import check_at_least, check_choice, check_positions, check_rates
from vit_jax.choices import (
    ACTIVATIONS,
    INITIALIZATIONS,
    Activation,
    Initialization,
    Pool,
    PositionEmbedding,
    Stem,
)
from vit_jax.dtypes import float32_or_wider
from vit_jax.layers import DotGeneral, Dropout, LayerNorm, make_dense
from vit_jax.multi_head import AttentionImplementation
from vit_jax.pooling import AttentionPool, SequencePool
from vit_jax.position import rotary_angles, sincos2d_position
from vit_jax.stem import ConvStem, grid_of_patches, patchify
from vit_jax.transformer import Encoder

Array = jax.Array


class ViT(nn.Module):
    """Classify images with a Transformer encoder over their patches.

    >>> model = ViT(10, patch_size=4, width=16, depth=2, num_heads=2)
    >>> model.init_with_output(jax.random.key(0), jnp.ones((1, 8, 8, 3)))[0].shape
    (1, 10)

    Attributes:
        num_classes: number of classes Y; None for no head: the model returns the
            features before the head.
        patch_size: side P of a patch, pixels; divides height and width.
        stem: what makes tokens of the image: "patches", cut and embedded, or "conv",
            convolutions; see `ConvStem`.
        width: width D of a token.
        depth: number of encoder blocks L.
        num_heads: number of attention heads; divides the width.
        mlp_ratio: width of the MLPs' hidden layers, as a multiple of `width`; None
            for no MLPs.
        activation: the MLPs' nonlinearity: "gelu_tanh", as in the authors' code, the
            exact "gelu", as in PyTorch, timm and Hugging Face, or "relu".
        norm: position of LayerNorm: "pre", before each sublayer, or "post", after its
            residual (arXiv:1706.03762), each with one more at the end; None for none.
        norm_epsilon: added to the variance in LayerNorm: 1e-6 in the authors' code and
            timm, 1e-12 in Hugging Face, 1e-5 where PyTorch's default is kept.
        residual: whether each sublayer's input is added to its output.
        qkv_bias: whether queries, keys and values of the blocks have biases.
        normalize_qk: whether a LayerNorm follows the blocks' projections of queries and
            keys, in each head (arXiv:2302.05442).
        dropout_rate: dropout on the outputs of attention and MLP and inside the MLP.
        attention_dropout_rate: dropout on the attention weights.
        attention_implementation: "own", this project's; or JAX's "cudnn"
            (FlashAttention, bfloat16 on NVIDIA GPUs) or "xla".
        embedding_dropout_rate: dropout on the embedded tokens. In the paper it equals
            `dropout_rate`, and the attention weights have no dropout.
        stochastic_depth_rate: stochastic depth (DropPath): share of the examples for
            which each sublayer of the last block is skipped in training. The rate rises
            linearly from 0 in the first block, as in timm; a single block has rate 0.
        layer_scale: initial factor of each sublayer's output, a parameter for each
            channel; None for no such factor.
        pool: what the head classifies: "cls", a class token; or, without one, "mean",
            the mean of the patches; "sequence", a weighted mean, see `SequencePool`;
            "map", what a learned query finds, see `AttentionPool`.
        norm_after_pool: whether the final LayerNorm comes after the pooling (timm's
            `fc_norm`) instead of after the encoder.
        num_registers: number of tokens that belong to no patch and are not classified
            (arXiv:2309.16588); they follow the patches.
        representation_size: width of a tanh layer before the head; none if None.
        position_embedding: "learned" adds a parameter, "sincos2d" sines and cosines of
            row and column, see `sincos2d_position`; "rope" turns queries and keys, see
            `rotate`; with None the order of the patches is unknown.
        position_std: standard deviation of the initial position embedding and
            registers; the embedded patches are of order 1. With 0.02, as the authors
            have it for ImageNet, a small model learns the use of positions slowly.
        initialization: initial values of the other parameters: "xavier" for all dense
            kernels and zero for the biases, or "authors", which differs in embedding
            and representation (LeCun's), MLP biases (normal, 1e-6) and head (zero).
        remat: whether the backward pass recomputes each block's activations.
        scan: whether one block is compiled and run `depth` times; its parameters are
            then `encoder/blocks`, with a leading axis L, see `weights.stack_blocks`.
        conv_general_dilated: computes the convolutions of the stem "conv".
        dot_general: multiplies the matrices of the blocks; see `MultiHeadAttention`.
        dtype: dtype of the computation; parameters stay float32, softmax, LayerNorm
            statistics and the head run in float32 or wider.

    References: arXiv:2010.11929, eq. 1-4.
    """

    num_classes: int | None
    patch_size: int
    width: int
    depth: int
    num_heads: int
    stem: Stem = "patches"
    mlp_ratio: float | None = 4.0
    activation: Activation = "gelu_tanh"
    norm: NormPlacement = "pre"
    norm_epsilon: float = 1e-6
    residual: bool = True
    qkv_bias: bool = True
    normalize_qk: bool = False
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    attention_implementation: AttentionImplementation = "own"
    embedding_dropout_rate: float = 0.0
    stochastic_depth_rate: float = 0.0
    layer_scale: float | None = None
    pool: Pool = "cls"
    norm_after_pool: bool = False
    num_registers: int = 0
    representation_size: int | None = None
    position_embedding: PositionEmbedding = "learned"
    position_std: float = 0.3
    initialization: Initialization = "xavier"
    remat: bool = False
    scan: bool = False
    conv_general_dilated: Callable[..., Array] = jax.lax.conv_general_dilated
    dot_general: DotGeneral = jax.lax.dot_general
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, image_BHWC: Array, *, train: bool = False, return_tokens: bool = False
    ) -> Array:
        """Compute the class logits of normalised images, floating point.

        Returns:
            logits_BY, or the features (B, `representation_size` or D) if `num_classes`
            is None; with `return_tokens` all tokens (B, T, D) of the encoder: class
            token, patches row by row, registers; with `norm_after_pool` not yet
            normalised. float32, or float64 where that is the compute dtype.

        Raises:
            ValueError: if a field is out of range or does not fit the image.
        """
        chex.assert_rank(image_BHWC, 4)
        chex.assert_type(image_BHWC, float)
        self._check_fields()
        init = INITIALIZATIONS[self.initialization]
        grid = grid_of_patches(image_BHWC, self.patch_size)
        num_patches = math.prod(grid)
        x_BTD = self._embed(image_BHWC, init.embedding_kernel)
        x_BTD = self._add_positions_and_tokens(x_BTD, grid)  # eq. 1
        x_BTD = Dropout(self.embedding_dropout_rate, deterministic=not train)(x_BTD)
        num_outputs = None if return_tokens else self._num_outputs(num_patches)
        encoder = self._make_encoder(init.mlp_bias, num_outputs)
        x_BTD = encoder(x_BTD, angle=self._rotary_angles(grid), train=train)  # eq. 2, 3
        dtype = float32_or_wider(self.dtype)
        if return_tokens:
            chex.assert_shape(x_BTD, (image_BHWC.shape[0], None, self.width))
            return x_BTD.astype(dtype)
        x_BD = self._pool(x_BTD, num_patches)  # eq. 4
        if self.representation_size is not None:
            fields = {"kernel_init": init.embedding_kernel, "name": "pre_logits"}
            x_BD = make_dense(self.representation_size, dtype=self.dtype, **fields)(
                x_BD
            )
            x_BD = nn.tanh(x_BD)
        out_BY = x_BD.astype(dtype)
        if self.num_classes is not None:  # not rounded: classes can lie close together
            fields = {"kernel_init": init.head_kernel, "name": "head"}
            out_BY = make_dense(self.num_classes, dtype=dtype, **fields)(out_BY)
        num_features = self.num_classes or self.representation_size or self.width
        chex.assert_shape(out_BY, (image_BHWC.shape[0], num_features))
        return out_BY

    @property
    def has_convolutions(self) -> bool:
        """Whether the stem convolves."""
        return self.stem == "conv"

    def _embed(self, image_BHWC: Array, init: nn.initializers.Initializer) -> Array:
        """Turn the image into tokens."""
        image_BHWC = image_BHWC.astype(self.dtype)
        if self.has_convolutions:
            return ConvStem(
                self.width,
                self.patch_size,
                conv_general_dilated=self.conv_general_dilated,
                dtype=self.dtype,
                name="stem",
            )(image_BHWC)
        fields = {"dtype": self.dtype, "kernel_init": init, "name": "embedding"}
        return make_dense(self.width, **fields)(patchify(image_BHWC, self.patch_size))

    def _add_positions_and_tokens(self, x_BTD: Array, grid: tuple[int, int]) -> Array:
        """Add position embedding, class token and registers, where there are any."""

        def tokens(name: str, init: nn.initializers.Initializer, count: int) -> Array:
            token_1TD = self.param(name, init, (1, count, self.width), jnp.float32)
            # Sharded as the patches are, on a mesh with explicit axes.
            return jnp.zeros_like(x_BTD[:, :1]) + token_1TD.astype(self.dtype)

        if self.position_embedding == "sincos2d":  # has no row for the class token
            x_BTD += sincos2d_position(grid, self.width)[None].astype(self.dtype)
        if self.pool == "cls":
            cls_B1D = tokens("cls", nn.initializers.zeros, 1)
            x_BTD = jnp.concatenate([cls_B1D, x_BTD], axis=1)
        normal = nn.initializers.normal(self.position_std)
        if self.position_embedding == "learned":
            trained = nn.unbox(self.get_variable("params", "pos_embedding"))
            check_positions(trained, num_tokens=x_BTD.shape[1])
            x_BTD += tokens("pos_embedding", normal, x_BTD.shape[1])
        if self.num_registers:
            registers = tokens("registers", normal, self.num_registers)
            x_BTD = jnp.concatenate([x_BTD, registers], axis=1)
        return x_BTD

    def _rotary_angles(self, grid: tuple[int, int]) -> Array | None:
        """Compute the angles of the rotary position embedding, if there is one."""
        if self.position_embedding != "rope":
            return None
        return rotary_angles(
            grid,
            self.width // max(self.num_heads, 1),
            num_before=int(self.pool == "cls"),
            num_after=self.num_registers,
        )

    def _num_outputs(self, num_patches: int) -> int | None:
        """Return how many tokens the last block computes; all (None) for a capture."""
        is_captured = self.is_mutable_collection("intermediates")
        return None if is_captured else 1 if self.pool == "cls" else num_patches

    def _make_encoder(
        self, mlp_bias_init: nn.initializers.Initializer, num_outputs: int | None
    ) -> Encoder:
        """Make the encoder; what isn't given here are the fields of the same name."""
        names = {field.name for field in dataclasses.fields(Encoder)}
        names &= {field.name for field in dataclasses.fields(self)}
        same = {name: getattr(self, name) for name in names - {"parent", "name"}}
        others = {
            "mlp_dim": self._mlp_dim(),
            "activation": ACTIVATIONS[self.activation],
            "mlp_bias_init": mlp_bias_init,
            "num_outputs": num_outputs,
            "final_norm": not self.norm_after_pool,
        }
        return Encoder(**same | others, name="encoder")

    def _mlp_dim(self) -> int | None:
        """Return the width of the MLPs' hidden layers, None for no MLPs."""
        return None if self.mlp_ratio is None else round(self.mlp_ratio * self.width)

    def _pool(self, x_BTD: Array, num_patches: int) -> Array:
        """Reduce the tokens to what is classified: x_BD."""
        fields: dict[str, Any] = {"dtype": self.dtype, "name": "pool"}
        patches_BTD = x_BTD[:, :num_patches]
        if self.pool == "cls":
            x_BD = x_BTD[:, 0]
        elif self.pool == "mean":
            x_BD = patches_BTD.mean(axis=1)
        elif self.pool == "sequence":
            x_BD = SequencePool(**fields)(patches_BTD)
        else:
            activation = ACTIVATIONS[self.activation]
            fields |= {"activation": activation, "norm_epsilon": self.norm_epsilon}
            fields["mlp_bias_init"] = INITIALIZATIONS[self.initialization].mlp_bias
            x_BD = AttentionPool(self.num_heads, self._mlp_dim(), **fields)(patches_BTD)
        if self.norm is None or not self.norm_after_pool:
            return x_BD
        return LayerNorm(self.norm_epsilon, dtype=self.dtype, name="norm")(x_BD)

    def _check_fields(self) -> None:
        """Raise ValueError for fields that are out of range for every image."""
        from_1 = ("num_classes", "width", "representation_size")
        from_0 = ("depth", "position_std", "num_registers")
        for minimum, names in ((1, from_1), (0, from_0)):
            check_at_least(minimum, **{name: getattr(self, name) for name in names})
        choices = {
            "stem": get_args(Stem),
            "pool": get_args(Pool),
            "position_embedding": ("learned", "sincos2d", "rope", None),
            "activation": get_args(Activation),
            "initialization": get_args(Initialization),
        }
        for name, known in choices.items():
            check_choice(name, getattr(self, name), known)
        if self.mlp_ratio is not None and round(self.mlp_ratio * self.width) < 1:
            raise ValueError(
                "mlp_ratio must leave the MLP a width of at least 1, got mlp_ratio "
                f"{self.mlp_ratio} and width {self.width}"
            )
        check_rates(self)
