"""The Vision Transformer.

References: "An Image is Worth 16x16 Words", arXiv:2010.11929.
"""

import functools
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.checks import check_at_least
from vit_jax.dense import Dense
from vit_jax.dropout import Dropout, check_rates
from vit_jax.dtypes import float32_or_wider
from vit_jax.transformer import Encoder

Array = jax.Array


_ACTIVATIONS = {
    "gelu_tanh": nn.gelu,
    "gelu": functools.partial(nn.gelu, approximate=False),
    "relu": nn.relu,
}

# The kernel of the embedding, the biases of the MLPs, the kernel of the head.
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
    """Cut images into square patches, row by row, and flatten each of them.

    Returns:
        patch_BTE: T = (H / P)·(W / P) patches of E = P·P·C values; inside a patch
        the order is row, column, channel, so that a dense layer on top equals a
        convolution with kernel and stride P.

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
    patch_BRCPPC = image_BHWC.reshape(grid).swapaxes(2, 3)
    return patch_BRCPPC.reshape(batch, rows * columns, patch_size**2 * channels)


class ViT(nn.Module):
    """Classify images with a Transformer encoder over their patches.

    Attributes:
        num_classes: number of classes Y; None for no head: the model gives the
            features that a head would read.
        patch_size: side P of a patch, pixels; divides height and width.
        width: width D of a token.
        depth: number of encoder blocks L.
        num_heads: number of attention heads; divides the width.
        mlp_ratio: width of the MLPs' hidden layers, as a multiple of `width`; None
            for no MLPs at all.
        activation: the MLPs' nonlinearity: "gelu_tanh", as in the authors' code, the
            exact "gelu", as in PyTorch, timm and Hugging Face, or "relu".
        norm: where LayerNorm stands, "pre", "post" or None; see `TransformerModule`.
        norm_epsilon: added to the variance in LayerNorm: 1e-6 in the authors' code and
            timm, 1e-12 in Hugging Face, 1e-5 where PyTorch's default is kept.
        residual: whether each sublayer's input is added to its output.
        dropout_rate: dropout on the outputs of attention and MLP and inside the MLP.
        attention_dropout_rate: dropout on the attention weights.
        attention_implementation: "own", "cudnn" or "xla"; see `MultiHeadAttention`.
        embedding_dropout_rate: dropout on the embedded tokens. The paper has it equal
            to `dropout_rate`, and none on the attention weights.
        pool: "cls" reads the class token at the end, "mean" the mean of the patches
            (and there is no class token).
        representation_size: width of a tanh layer before the head; none if None.
        position_embedding: whether the tokens are told where their patches lie.
        position_std: standard deviation of the initial position embedding. Next to
            it the embedded patches are of order 1; with 0.02, as in the authors' code
            for ImageNet, a small model takes many epochs to notice where a patch lies.
        initialization: what the other parameters start from: "xavier" for all kernels
            and zero for the biases, or "authors", which differs in three places: the
            embedding (LeCun's), the MLPs' biases (normal, 1e-6) and the head (zero).
        remat: whether the backward pass computes each block's activations anew; see
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
    activation: str = "gelu_tanh"
    norm: str | None = "pre"
    norm_epsilon: float = 1e-6
    residual: bool = True
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    attention_implementation: str = "own"
    embedding_dropout_rate: float = 0.0
    pool: str = "cls"
    representation_size: int | None = None
    position_embedding: bool = True
    position_std: float = 0.3
    initialization: str = "xavier"
    remat: bool = False
    scan: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image_BHWC: Array, *, train: bool = False) -> Array:
        """Compute the class logits.

        Args:
            image_BHWC: normalised images, floating point.
            train: whether dropout is active (needs the rng "dropout").

        Returns:
            logits_BY, or the features (B, `representation_size` or D) if `num_classes`
            is None; float32, or float64 where that is the compute dtype.

        Raises:
            ValueError: if a field is out of range, the patch size does not divide the
                image, or the number of heads does not divide the width.
        """
        chex.assert_rank(image_BHWC, 4)
        self._check_fields()
        kernel_init, mlp_bias_init, head_init = _INITIALIZATIONS[self.initialization]
        dense = functools.partial(Dense, dtype=self.dtype)
        patch_BTE = patchify(image_BHWC.astype(self.dtype), self.patch_size)
        embedding = dense(self.width, kernel_init=kernel_init, name="embedding")
        x_BTD = self._add_position(self._add_class_token(embedding(patch_BTE)))
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
            remat=self.remat,
            scan=self.scan,
            num_outputs=self._num_outputs(),
            dtype=self.dtype,
            name="encoder",
        )

    def _num_outputs(self) -> int | None:
        """How many tokens the last block has to compute: the class token alone.

        All, where all are pooled, or where somebody captures what lies in between.
        """
        is_captured = self.is_mutable_collection("intermediates")
        return 1 if self.pool == "cls" and not is_captured else None

    def _add_class_token(self, x_BTD: Array) -> Array:
        """Prepend the class token, where it is what is read at the end."""
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
        """Raise ValueError for fields that no image could satisfy."""
        check_at_least(
            1,
            num_classes=self.num_classes,
            width=self.width,
            representation_size=self.representation_size,
        )
        check_at_least(0, depth=self.depth, position_std=self.position_std)
        for name, known in (
            ("pool", ("cls", "mean")),
            ("activation", _ACTIVATIONS),
            ("initialization", _INITIALIZATIONS),
        ):
            if getattr(self, name) not in known:
                *others, last = map(repr, known)
                raise ValueError(
                    f"{name} must be {', '.join(others)} or {last}, got "
                    f"{getattr(self, name)!r}"
                )
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
