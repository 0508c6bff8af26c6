"""Resize position and patch embeddings to another grid or size of patches."""

from typing import Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.dtypes import float32_or_wider

Array = jax.Array
Method = Literal["bicubic", "bilinear"]


def resize_position_embedding(
    position_1TD: Array | np.ndarray,
    old_grid: tuple[int, int],
    new_grid: tuple[int, int],
    *,
    method: Method = "bicubic",
) -> Array:
    """Resize a learned position embedding to another grid of patches.

    >>> resize_position_embedding(jnp.ones((1, 5, 8)), (2, 2), (3, 4)).shape
    (1, 13, 8)

    Args:
        position_1TD: the positions of a grid, row by row; those before them, such as
            the class token's, are kept.
        old_grid: rows and columns of patches.
        new_grid: likewise.
        method: "bicubic", with antialiasing, as in timm; or "bilinear" between the
            corners, as in the authors' code.

    Returns:
        (1, T, D), T of the new grid.

    Raises:
        ValueError: for fewer tokens than patches, or another method.

    References: arXiv:2010.11929, section 3.2.
    """
    chex.assert_shape(position_1TD, (1, None, None))
    num_others = position_1TD.shape[1] - old_grid[0] * old_grid[1]
    if num_others < 0:
        raise ValueError(
            f"position_1TD must have {old_grid[0] * old_grid[1]} positions or more, "
            f"for a grid of {old_grid}, got {position_1TD.shape[1]}"
        )
    if method not in ("bicubic", "bilinear"):
        raise ValueError(f"method must be 'bicubic' or 'bilinear', got {method!r}")
    others_TD = jnp.asarray(position_1TD[0, :num_others])
    width = position_1TD.shape[-1]
    grid_HWD = jnp.asarray(position_1TD[0, num_others:]).reshape(*old_grid, width)
    if method == "bicubic":
        grid_HWD = jax.image.resize(grid_HWD, (*new_grid, width), "bicubic")
    else:
        for axis, size in enumerate(new_grid):
            grid_HWD = _interpolate(grid_HWD, axis, size)
    patches_TD = grid_HWD.reshape(-1, width)
    out_1TD = jnp.concatenate([others_TD, patches_TD])[None]
    chex.assert_shape(out_1TD, (1, num_others + new_grid[0] * new_grid[1], width))
    return out_1TD


def resize_patch_embedding(
    kernel: Array | np.ndarray, old_size: int, new_size: int
) -> Array:
    """Fit the kernel of the patch embedding to patches of another size.

    A patch that is resized to a larger size, bicubically, keeps its embedding. A
    smaller size loses detail; there the parts of the kernel that it can show are kept.

    >>> resize_patch_embedding(jnp.ones((4 * 4 * 3, 8)), 4, 6).shape
    (108, 8)

    Args:
        kernel: (P·P·C, D), for patches of the old size.
        old_size: side of a patch, pixels.
        new_size: likewise.

    Returns:
        The kernel for patches of the new size, in the dtype given.

    Raises:
        ValueError: if the kernel is not one of the old size.

    References: "FlexiViT", arXiv:2212.08013, section 3.4; antialiased as in timm.
    """
    chex.assert_shape(kernel, (None, None))
    num_rows, num_features = kernel.shape
    if num_rows % old_size**2:
        raise ValueError(
            f"kernel must have a multiple of {old_size}² rows, got {num_rows}"
        )
    dtype = float32_or_wider(kernel.dtype)
    # Resizes a row of pixels: new_size × old_size.
    identity = jnp.eye(old_size, dtype=dtype)
    resize = jax.image.resize(identity, (new_size, old_size), "bicubic")
    inverse = jnp.linalg.pinv(resize).T
    kernel_PPCD = jnp.asarray(kernel, dtype).reshape(
        old_size, old_size, -1, num_features
    )
    resized = jnp.einsum(
        "ai,bj,ijcd->abcd", inverse, inverse, kernel_PPCD, precision="highest"
    )
    num_channels = num_rows // old_size**2
    chex.assert_shape(resized, (new_size, new_size, num_channels, num_features))
    return resized.reshape(-1, num_features).astype(kernel.dtype)


def _interpolate(x: Array, axis: int, size: int) -> Array:
    """Interpolate linearly along an axis, so that its ends stay."""
    position = np.linspace(0, x.shape[axis] - 1, size)
    before = np.floor(position).astype(np.int32)
    after = np.minimum(before + 1, x.shape[axis] - 1)
    shape = [-1 if i == axis else 1 for i in range(x.ndim)]
    share = jnp.asarray((position - before).reshape(shape), x.dtype)
    return x.take(before, axis) * (1 - share) + x.take(after, axis) * share
