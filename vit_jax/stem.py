"""Turn images into tokens: square patches, or a stem of convolutions."""

from collections.abc import Callable
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.checks import check_at_least

Array = jax.Array

# Channels of all convolutions but the last.
_HIDDEN_FEATURES = 64


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
    rows, columns = grid_of_patches(image_BHWC, patch_size)
    batch, _, width, channels = image_BHWC.shape
    # One axis at a time: of a sharded array JAX splits or merges no more.
    strips = image_BHWC.reshape(batch, rows, patch_size, width, channels)
    squares = strips.reshape(batch, rows, patch_size, columns, patch_size, channels)
    patches = jnp.swapaxes(squares, 2, 3)
    shape = (batch, rows, columns, patch_size, patch_size, channels)
    chex.assert_shape(patches, shape)
    patches = patches.reshape(batch, rows * columns, *shape[3:])
    return patches.reshape(batch, rows * columns, patch_size**2 * channels)


def grid_of_patches(image_BHWC: Array, patch_size: int) -> tuple[int, int]:
    """Count the rows and columns of patches.

    >>> grid_of_patches(jnp.ones((2, 8, 12, 3)), patch_size=4)
    (2, 3)

    Raises:
        ValueError: if the patch size does not divide height and width, or there is no
            channel.
    """
    chex.assert_rank(image_BHWC, 4)
    _, height, width, channels = image_BHWC.shape
    check_at_least(1, channels=channels)
    is_cut = 1 <= patch_size <= min(height, width)
    if not is_cut or height % patch_size or width % patch_size:
        raise ValueError(
            "patch_size must divide the image's height and width, got patch_size "
            f"{patch_size} and an image of {height}x{width}"
        )
    return height // patch_size, width // patch_size


class ConvStem(nn.Module):
    """Turn images into tokens by convolutions, each with a ReLU and max-pooling.

    Every 3×3 convolution keeps the size, every 3×3 max-pooling with stride 2 halves it.
    Neighbouring tokens overlap, and the order of the pixels is not learned anew.

    >>> stem = ConvStem(width=16, patch_size=4)
    >>> stem.init_with_output(jax.random.key(0), jnp.ones((2, 8, 8, 3)))[0].shape
    (2, 4, 16)

    Attributes:
        width: width D of a token, the last convolution's channels; those before it have
            64.
        patch_size: pixels from one token to the next: 2 to the power of the number of
            convolutions; divides height and width.
        conv_general_dilated: computes the convolutions.
        dtype: dtype of the computation; parameters stay float32.

    References: arXiv:2104.05704, section 3.3.
    """

    width: int
    patch_size: int
    conv_general_dilated: Callable[..., Array] = jax.lax.conv_general_dilated
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image_BHWC: Array) -> Array:
        """Compute the tokens of images, row by row: x_BTD.

        Raises:
            ValueError: if `patch_size` is no power of 2 from 2 on, or does not divide
                height and width.
        """
        chex.assert_rank(image_BHWC, 4)
        if self.patch_size < 2 or self.patch_size & (self.patch_size - 1):
            raise ValueError(
                "patch_size must be a power of 2, at least 2, for the stem 'conv', "
                f"got {self.patch_size}"
            )
        rows, columns = grid_of_patches(image_BHWC, self.patch_size)
        num_layers = self.patch_size.bit_length() - 1
        x_BHWF = image_BHWC.astype(self.dtype)
        for layer in range(num_layers):
            is_last = layer == num_layers - 1
            x_BHWF = nn.Conv(
                self.width if is_last else _HIDDEN_FEATURES,
                (3, 3),
                padding=[(1, 1)] * 2,
                use_bias=False,
                kernel_init=nn.initializers.he_normal(),
                conv_general_dilated=self.conv_general_dilated,
                dtype=self.dtype,
                name=f"conv_{layer}",
            )(x_BHWF)
            x_BHWF = _max_pool(nn.relu(x_BHWF))
        batch = image_BHWC.shape[0]
        chex.assert_shape(x_BHWF, (batch, rows, columns, self.width))
        return x_BHWF.reshape(batch, rows * columns, self.width)


def _max_pool(x_BHWC: Array) -> Array:
    """Take the maximum of 3×3 pixels around every second pixel, none negative.

    By slices: the gradient of `nn.max_pool` runs on one core of a CPU.
    """
    _, height, width, _ = x_BHWC.shape
    padded = jnp.pad(x_BHWC, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = [padded[:, i : i + height : 2] for i in range(3)]
    x_BHWC = jnp.maximum(jnp.maximum(rows[0], rows[1]), rows[2])
    columns = [x_BHWC[:, :, i : i + width : 2] for i in range(3)]
    return jnp.maximum(jnp.maximum(columns[0], columns[1]), columns[2])
