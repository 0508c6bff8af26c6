"""The Vision Transformer.

References: "An Image is Worth 16x16 Words", arXiv:2010.11929.
"""

import functools
from typing import Any, Literal, get_args

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.attention import AttentionImplementation
from vit_jax.blocks import NormPlacement
from vit_jax.checks import check_at_least, check_choice
from vit_jax.dtypes import float32_or_wider
from vit_jax.layers import Dense, Dropout, check_rates
from vit_jax.transformer import Encoder

Array = jax.Array
Pool = Literal["cls", "mean"]
Activation = Literal["gelu_tanh", "gelu", "relu"]
Initialization = Literal["xavier", "authors"]

_ACTIVATIONS = {
    "gelu_tanh": nn.gelu,
    "gelu": functools.partial(nn.gelu, approximate=False),
    "relu": nn.relu,
}

# Kernel of the embedding, biases of the MLPs, kernel of the head.
_xavier = nn.initializers.xavier_uniform()
_INITIALIZATIONS = {
    "xavier": (_xavier, nn.initializers.zeros, _xavier),
    "authors": (
        nn.initializers.lecun_normal(),
        nn.initializers.normal(1e-6),
        nn.initializers.zeros,
    ),
}


def patchify(image_BHWC: Array, patch_size: int) -> Array:
    """Cut images into square patches, row by row, and flatten each patch.

    >>> patchify(jnp.ones((2, 8, 8, 3)), patch_size=4).shape
    (2, 4, 48)

    Returns:
        Patches (B, T, P·P·C), T = (H / P)·(W / P); inside a patch the order is row,
        column, channel, so that a dense layer on top equals a convolution with kernel
        and stride P.

    Raises:
        ValueError: if the patch size does not divide height and width, or there is no
            channel.

    References: arXiv:2010.11929, section 3.1.
    """
    chex.assert_rank(image_BHWC, 4)
    batch, height, width, channels = image_BHWC.shape
    check_at_least(1, channels=channels)
    is_cut = 1 <= patch_size <= min(height, width)
    if not is_cut or height % patch_size or width % patch_size:
        raise ValueError(
            "patch_size must divide the image's height and width, got patch_size "
            f"{patch_size} and an image of {height}x{width}"
        )
    rows, columns = height // patch_size, width // patch_size
    grid = (batch, rows, patch_size, columns, patch_size, channels)
    patches = jnp.swapaxes(image_BHWC.reshape(grid), 2, 3)
    chex.assert_shape(patches, (batch, rows, columns, *2 * (patch_size,), channels))
    return patches.reshape(batch, rows * columns, patch_size**2 * channels)


class ViT(nn.Module):
    """Classify images with a Transformer encoder over their patches.

    >>> model = ViT(10, patch_size=4, width=16, depth=2, num_heads=2)
    >>> model.init_with_output(jax.random.key(0), jnp.ones((1, 8, 8, 3)))[0].shape
    (1, 10)

    Attributes:
        num_classes: number of classes Y; None for no head: the model returns the
            features before the head.
        patch_size: side P of a patch, pixels; divides height and width.
        width: width D of a token.
        depth: number of encoder blocks L.
        num_heads: number of attention heads; divides the width.
        mlp_ratio: width of the MLPs' hidden layers, as a multiple of `width`; None
            for no MLPs.
        activation: the MLPs' nonlinearity: "gelu_tanh", as in the authors' code, the
            exact "gelu", as in PyTorch, timm and Hugging Face, or "relu".
        norm: position of LayerNorm, "pre", "post" or None; see `TransformerModule`.
        norm_epsilon: added to the variance in LayerNorm: 1e-6 in the authors' code and
            timm, 1e-12 in Hugging Face, 1e-5 where PyTorch's default is kept.
        residual: whether each sublayer's input is added to its output.
        dropout_rate: dropout on the outputs of attention and MLP and inside the MLP.
        attention_dropout_rate: dropout on the attention weights.
        attention_implementation: "own", "cudnn" or "xla"; see `MultiHeadAttention`.
        embedding_dropout_rate: dropout on the embedded tokens. In the paper it equals
            `dropout_rate`, and the attention weights have no dropout.
        stochastic_depth_rate: see `Encoder`.
        layer_scale: see `TransformerModule`.
        pool: "cls" classifies the class token, "mean" the mean of all tokens (without
            a class token).
        representation_size: width of a tanh layer before the head; none if None.
        position_embedding: whether a learned position embedding is added.
        position_std: standard deviation of the initial position embedding; the
            embedded patches are of order 1. With 0.02, as in the authors' code for
            ImageNet, a small model needs many epochs to make use of the positions.
        initialization: initial values of the other parameters: "xavier" for all
            kernels and zero for the biases, or "authors", which differs in the
            embedding (LeCun's), the MLPs' biases (normal, 1e-6) and the head (zero).
        remat: whether the backward pass recomputes each block's activations; see
            `Encoder`.
        scan: whether one block is compiled and run `depth` times; see `Encoder`.
        dtype: dtype of the computation; parameters stay float32, softmax and LayerNorm
            statistics run in float32 or wider.

    References: arXiv:2010.11929, eq. 1-4.
    """

    num_classes: int | None
    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_ratio: float | None = 4.0
    activation: Activation = "gelu_tanh"
    norm: NormPlacement = "pre"
    norm_epsilon: float = 1e-6
    residual: bool = True
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    attention_implementation: AttentionImplementation = "own"
    embedding_dropout_rate: float = 0.0
    stochastic_depth_rate: float = 0.0
    layer_scale: float | None = None
    pool: Pool = "cls"
    representation_size: int | None = None
    position_embedding: bool = True
    position_std: float = 0.3
    initialization: Initialization = "xavier"
    remat: bool = False
    scan: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image_BHWC: Array, *, train: bool = False) -> Array:
        """Compute the class logits of normalised images, floating point.

        Returns:
            logits_BY, or the features (B, `representation_size` or D) if `num_classes`
            is None; float32, or float64 where that is the compute dtype.

        Raises:
            ValueError: if a field is out of range or does not fit the image.
        """
        chex.assert_rank(image_BHWC, 4)
        chex.assert_type(image_BHWC, float)
        self._check_fields()
        kernel_init, mlp_bias_init, head_init = _INITIALIZATIONS[self.initialization]
        dense = functools.partial(Dense, dtype=self.dtype)
        patches = patchify(image_BHWC.astype(self.dtype), self.patch_size)
        embedding = dense(self.width, kernel_init=kernel_init, name="embedding")
        x_BTD = self._add_position(self._add_class_token(embedding(patches)))
        x_BTD = Dropout(self.embedding_dropout_rate, deterministic=not train)(x_BTD)
        x_BTD = self._encoder(mlp_bias_init)(x_BTD, train=train)
        x_BD = x_BTD[:, 0] if self.pool == "cls" else x_BTD.mean(axis=1)
        if self.representation_size is not None:
            x_BD = nn.tanh(dense(self.representation_size, name="pre_logits")(x_BD))
        out_BY = x_BD
        if self.num_classes is not None:
            head = dense(self.num_classes, kernel_init=head_init, name="head")
            out_BY = head(x_BD)
        num_outputs = self.num_classes or self.representation_size or self.width
        chex.assert_shape(out_BY, (image_BHWC.shape[0], num_outputs))
        return out_BY.astype(float32_or_wider(self.dtype))

    def _encoder(self, mlp_bias_init: nn.initializers.Initializer) -> Encoder:
        """Make the encoder."""
        ratio = self.mlp_ratio
        return Encoder(
            depth=self.depth,
            num_heads=self.num_heads,
            mlp_dim=None if ratio is None else round(ratio * self.width),
            activation=_ACTIVATIONS[self.activation],
            mlp_bias_init=mlp_bias_init,
            norm=self.norm,
            norm_epsilon=self.norm_epsilon,
            residual=self.residual,
            dropout_rate=self.dropout_rate,
            attention_dropout_rate=self.attention_dropout_rate,
            attention_implementation=self.attention_implementation,
            stochastic_depth_rate=self.stochastic_depth_rate,
            layer_scale=self.layer_scale,
            remat=self.remat,
            scan=self.scan,
            num_outputs=self._num_outputs(),
            dtype=self.dtype,
            name="encoder",
        )

    def _num_outputs(self) -> int | None:
        """Return the number of tokens the last block computes: 1, or None for all.

        All are needed where they are pooled or where intermediates are captured.
        """
        is_captured = self.is_mutable_collection("intermediates")
        return 1 if self.pool == "cls" and not is_captured else None

    def _add_class_token(self, x_BTD: Array) -> Array:
        """Prepend the class token, unless the tokens are pooled."""
        if self.pool != "cls":
            return x_BTD
        batch, _, width = x_BTD.shape
        cls_11D = self.param("cls", nn.initializers.zeros, (1, 1, width), jnp.float32)
        cls_B1D = jnp.broadcast_to(cls_11D, (batch, 1, width)).astype(self.dtype)
        return jnp.concatenate([cls_B1D, x_BTD], axis=1)

    def _add_position(self, x_BTD: Array) -> Array:
        """Add the position embedding, if there is one."""
        if not self.position_embedding:
            return x_BTD
        position_1TD = self.param(
            "pos_embedding",
            nn.initializers.normal(self.position_std),
            (1, *x_BTD.shape[1:]),
            jnp.float32,
        )
        return x_BTD + position_1TD.astype(self.dtype)

    def _check_fields(self) -> None:
        """Raise ValueError for fields that are out of range for every image."""
        check_at_least(
            1,
            num_classes=self.num_classes,
            width=self.width,
            representation_size=self.representation_size,
        )
        check_at_least(0, depth=self.depth, position_std=self.position_std)
        check_choice("pool", self.pool, get_args(Pool))
        check_choice("activation", self.activation, get_args(Activation))
        check_choice("initialization", self.initialization, get_args(Initialization))
        if self.mlp_ratio is not None and round(self.mlp_ratio * self.width) < 1:
            raise ValueError(
                "mlp_ratio must leave the MLP a width of at least 1, got mlp_ratio "
                f"{self.mlp_ratio} and width {self.width}"
            )
        check_rates(self)


# The models of the paper (table 1) and, Ti and S, of "How to train your ViT?"
# (arXiv:2106.10270), with the initialisation of their authors' code.
_preset = functools.partial(ViT, initialization="authors", position_std=0.02)
ViT_Ti16 = functools.partial(_preset, patch_size=16, width=192, depth=12, num_heads=3)
ViT_S16 = functools.partial(_preset, patch_size=16, width=384, depth=12, num_heads=6)
ViT_B16 = functools.partial(_preset, patch_size=16, width=768, depth=12, num_heads=12)
ViT_B32 = functools.partial(_preset, patch_size=32, width=768, depth=12, num_heads=12)
ViT_L16 = functools.partial(_preset, patch_size=16, width=1024, depth=24, num_heads=16)
