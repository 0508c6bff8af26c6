"""Positions of tokens: sines and cosines in a sequence or a grid; rotary embedding.

The learned position embedding is a parameter of `ViT`.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.checks import check_at_least, check_positive
from vit_jax.dtypes import float32_or_wider

Array = jax.Array


def sinusoidal_position(
    num_positions: int, width: int, *, dtype: Any = jnp.float32
) -> Array:
    """Compute the sinusoidal position encoding, wavelengths from 2π to 10000·2π.

    >>> np.asarray(sinusoidal_position(2, 4)).round(2)
    array([[0.  , 1.  , 0.  , 1.  ],
           [0.84, 0.54, 0.01, 1.  ]], dtype=float32)

    Args:
        num_positions: number of tokens T.
        width: width D of a token, even.
        dtype: dtype of the result, which is computed in float64.

    Returns:
        position_TD: sines in the even columns and cosines in the odd ones.

    Raises:
        ValueError: if there is no position, or the width is odd or below 2.

    References: arXiv:1706.03762, section 3.5.
    """
    check_at_least(1, num_positions=num_positions, width=width)
    if width % 2:
        raise ValueError(f"width must be even, got {width}")
    frequency = 10000.0 ** (-np.arange(0, width, 2) / width)
    angle = np.arange(num_positions)[:, None] * frequency[None, :]
    sine_and_cosine = np.stack([np.sin(angle), np.cos(angle)], axis=-1)
    position_TD = jnp.asarray(sine_and_cosine.reshape(num_positions, width), dtype)
    chex.assert_shape(position_TD, (num_positions, width))
    return position_TD


def sincos2d_position(
    grid: tuple[int, int], width: int, *, temperature: float = 10_000.0
) -> Array:
    """Compute the fixed position embedding of a grid: sines and cosines.

    A quarter of the width each: sine and cosine of the column, sine and cosine of the
    row, at frequencies that fall from 1 to 1 / `temperature`.

    >>> sincos2d_position((2, 3), 8).shape
    (6, 8)

    Args:
        grid: number of rows and of columns of patches.
        width: D; divisible by 4, and at least 8.
        temperature: the ratio of the highest to the lowest frequency.

    Returns:
        position_TD: float32, the patches row by row.

    Raises:
        ValueError: if the width is not divisible by 4, or less than 8.

    References: "Better plain ViT baselines for ImageNet-1k", arXiv:2205.01580.
    """
    if width < 8 or width % 4:
        raise ValueError(
            "width must be divisible by 4 and at least 8 for the position embedding "
            f"'sincos2d', got width {width}"
        )
    check_positive(temperature=temperature)
    frequencies = temperature ** -np.linspace(0, 1, width // 4)
    row_T, column_T = (x.ravel() for x in np.indices(grid))
    angles = [x_T[:, None] * frequencies for x_T in (column_T, row_T)]
    parts = [f(angle) for angle in angles for f in (np.sin, np.cos)]
    position_TD = jnp.asarray(np.concatenate(parts, axis=1), jnp.float32)
    chex.assert_shape(position_TD, (grid[0] * grid[1], width))
    return position_TD


def rotary_angles(
    grid: tuple[int, int],
    head_size: int,
    *,
    num_before: int = 0,
    num_after: int = 0,
    temperature: float = 100.0,
) -> Array:
    """Compute the angles by which `rotate` turns queries and keys of a grid.

    One half of the angles grows with the column, the other with the row, at frequencies
    that fall from 1 towards 1 / `temperature`. Tokens without a position, before and
    after the patches, are not turned. For a sequence see `rotary_angles_1d`.

    >>> rotary_angles((2, 3), 8, num_before=1).shape
    (7, 4)

    Args:
        grid: number of rows and of columns of patches.
        head_size: K, divisible by 4.
        num_before: number of tokens before the patches, such as the class token.
        num_after: number of tokens after them, such as registers.
        temperature: see above.

    Returns:
        Radians (T, K / 2), float32.

    Raises:
        ValueError: if the size of a head is not divisible by 4.

    References: RoPE, arXiv:2104.09864; on two axes ("axial"): arXiv:2403.13298, eq. 9.
    """
    if head_size < 4 or head_size % 4:
        raise ValueError(
            "width / num_heads must be divisible by 4 for the position embedding "
            f"'rope', got {head_size}"
        )
    check_positive(temperature=temperature)
    row_T, column_T = (x.ravel() for x in np.indices(grid))
    angles = [_turn(x_T, head_size // 4, temperature) for x_T in (column_T, row_T)]
    outside = ((num_before, num_after), (0, 0))
    angle = jnp.asarray(np.pad(np.concatenate(angles, axis=1), outside), jnp.float32)
    num_tokens = num_before + grid[0] * grid[1] + num_after
    chex.assert_shape(angle, (num_tokens, head_size // 2))
    return angle


def rotary_angles_1d(
    num_tokens: int, head_size: int, *, temperature: float = 10_000.0
) -> Array:
    """Compute the angles by which `rotate` turns queries and keys of a sequence.

    >>> rotary_angles_1d(3, 8).shape
    (3, 4)

    Args:
        num_tokens: T.
        head_size: K, even.
        temperature: the frequencies fall from 1 towards 1 / `temperature`.

    Returns:
        Radians (T, K / 2), float32.

    Raises:
        ValueError: if the size of a head is odd.

    References: RoPE, arXiv:2104.09864, section 3.2.2.
    """
    if head_size < 2 or head_size % 2:
        raise ValueError(f"head_size must be even and at least 2, got {head_size}")
    check_positive(temperature=temperature)
    angle = _turn(np.arange(num_tokens), head_size // 2, temperature)
    chex.assert_shape(angle, (num_tokens, head_size // 2))
    return jnp.asarray(angle, jnp.float32)


def _turn(position_T: np.ndarray, count: int, temperature: float) -> np.ndarray:
    """Multiply positions by so many frequencies: (T, count)."""
    return position_T[:, None] * temperature ** -(np.arange(count) / count)


def rotate(x_BNTK: Array, angle: Array) -> Array:
    """Apply a rotary position embedding (RoPE): rotate pairs of channels by an angle.

    Channels k and k + K / 2 are the two coordinates of a point. The product of a query
    and a key then depends on the difference of their positions alone. The paper pairs
    neighbouring channels, which is the same but for the order of the channels.

    >>> rotate(jnp.array([[[[1.0, 0.0]]]]), jnp.array([[jnp.pi / 2]])).round(3)
    Array([[[[-0.,  1.]]]], dtype=float32)

    Args:
        x_BNTK: floating point, K even.
        angle: radians (T, K / 2), see `rotary_angles` and `rotary_angles_1d`.

    Returns:
        out_BNTK: in the dtype given.

    References: arXiv:2104.09864, eq. 34.
    """
    chex.assert_rank([x_BNTK, angle], [4, 2])
    num_tokens, head_size = x_BNTK.shape[2:]
    chex.assert_shape(angle, (num_tokens, head_size // 2))
    angle = angle.astype(float32_or_wider(x_BNTK.dtype))
    sin, cos = jnp.sin(angle)[None, None], jnp.cos(angle)[None, None]
    first, second = jnp.split(x_BNTK.astype(angle.dtype), 2, axis=-1)
    turned = (first * cos - second * sin, first * sin + second * cos)
    out_BNTK = jnp.concatenate(turned, axis=-1).astype(x_BNTK.dtype)
    chex.assert_equal_shape([out_BNTK, x_BNTK])
    return out_BNTK
