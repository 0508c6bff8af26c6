"""TrivialAugment: one random operation an image, with a random strength.

References: "TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation",
arXiv:2103.10158; the operations are those of AutoAugment, arXiv:1805.09501, table 6.
"""

import chex
import jax
import jax.numpy as jnp

Array = jax.Array

# Strengths are the fractions 0/30, 1/30, ..., 30/30 of an operation's largest.
_LAST_BIN = 30

# Largest strengths of the operations that move pixels, "wide" (table 1 of the paper).
_MOST_SHEAR, _MOST_PIXELS, _MOST_DEGREES = 0.99, 32.0, 135.0
_MOVES = ("identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate")
_BLENDS = ("brightness", "saturation", "contrast", "sharpness")
_LEVELS = ("posterize", "solarize", "autocontrast", "equalize")
OPERATIONS = (*_MOVES, *_BLENDS, *_LEVELS)


def trivial_augment(key: Array, image_BHWC: Array) -> Array:
    """Apply to each image one of the operations, with a random strength and sign.

    Args:
        image_BHWC: uint8, of 1 or 3 channels.

    Returns:
        image_BHWC: uint8.
    """
    chex.assert_rank(image_BHWC, 4)
    batch = image_BHWC.shape[0]
    operation_key, strength_key, sign_key = jax.random.split(key, 3)
    operation_B = jax.random.randint(operation_key, (batch,), 0, len(OPERATIONS))
    bin_B = jax.random.randint(strength_key, (batch,), 0, _LAST_BIN + 1)
    sign_B = jnp.where(jax.random.bernoulli(sign_key, shape=(batch,)), 1.0, -1.0)
    out = apply_operations(image_BHWC, operation_B, bin_B / _LAST_BIN * sign_B)
    chex.assert_equal_shape([out, image_BHWC])
    return out


def apply_operations(image_BHWC: Array, operation_B: Array, strength_B: Array) -> Array:
    """Apply an operation to each image.

    Args:
        image_BHWC: uint8, of 1 or 3 channels.
        operation_B: indices into `OPERATIONS`.
        strength_B: in [-1, 1], a share of the operation's largest; only operations
            that have two directions look at its sign.

    Returns:
        image_BHWC: uint8.
    """
    chex.assert_rank([image_BHWC, operation_B, strength_B], [4, 1, 1])
    chex.assert_equal_shape_prefix([image_BHWC, operation_B, strength_B], 1)
    chex.assert_type(image_BHWC, jnp.uint8)
    out = jax.vmap(_apply)(image_BHWC, operation_B, strength_B)
    chex.assert_equal_shape([out, image_BHWC])
    chex.assert_type(out, jnp.uint8)
    return out


def _apply(image_HWC: Array, operation: Array, strength: Array) -> Array:
    """Apply an operation to one image, uint8."""
    moved = _move(image_HWC, operation, strength)
    pixels = moved.astype(jnp.float32)
    blended = _blend(pixels, operation - len(_MOVES), 1 + 0.99 * strength)
    levels = _change_levels(moved, jnp.abs(strength))
    index = operation - len(_MOVES) - len(_BLENDS)
    return jnp.where(index < 0, blended, levels[jnp.maximum(index, 0)])


def _move(image_HWC: Array, operation: Array, strength: Array) -> Array:
    """Shear, shift or rotate; what comes from outside is black.

    Every pixel takes the value of the pixel that an affine map sends it to, around the
    centre of the image; shears are around its upper left corner, as Pillow's are.
    """
    height, width, _ = image_HWC.shape
    shear, pixels = _MOST_SHEAR * strength, _MOST_PIXELS * strength
    angle = jnp.deg2rad(_MOST_DEGREES * strength)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    one, zero = jnp.ones(()), jnp.zeros(())
    # Rows (xx, xy, x0, yx, yy, y0): x of the source is xx · x + xy · y + x0.
    centre_x, centre_y = width / 2, height / 2
    maps = jnp.array(
        [
            [one, zero, zero, zero, one, zero],
            [one, shear, zero, zero, one, zero],
            [one, zero, zero, shear, one, zero],
            [one, zero, pixels, zero, one, zero],
            [one, zero, zero, zero, one, pixels],
            [
                *(cos, -sin, centre_x - cos * centre_x + sin * centre_y),
                *(sin, cos, centre_y - sin * centre_x - cos * centre_y),
            ],
        ]
    )
    xx, xy, x0, yx, yy, y0 = maps[jnp.where(operation < len(_MOVES), operation, 0)]
    y_HW, x_HW = jnp.meshgrid(
        jnp.arange(height) + 0.5, jnp.arange(width) + 0.5, indexing="ij"
    )
    column = jnp.floor(xx * x_HW + xy * y_HW + x0).astype(jnp.int32)
    row = jnp.floor(yx * x_HW + yy * y_HW + y0).astype(jnp.int32)
    is_inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    taken = image_HWC[jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1)]
    return jnp.where(is_inside[..., None], taken, 0).astype(image_HWC.dtype)


def _blend(pixels_HWC: Array, index: Array, factor: Array) -> Array:
    """Blend with black, grey, the mean grey or a smoothed image; uint8.

    Args:
        pixels_HWC: float32.
        index: into `_BLENDS`; negative for no change.
        factor: 0 for the other image, 1 for this one, more for the contrary.
    """
    grey_HW1 = _grey(pixels_HWC)
    others = jnp.stack(
        [
            jnp.zeros_like(pixels_HWC),
            jnp.broadcast_to(grey_HW1, pixels_HWC.shape),
            jnp.full_like(pixels_HWC, jnp.floor(grey_HW1.mean() + 0.5)),
            _smooth(pixels_HWC),
        ]
    )
    other_HWC = others[jnp.clip(index, 0, len(_BLENDS) - 1)]
    is_blended = (index >= 0) & (index < len(_BLENDS))
    factor = jnp.where(is_blended, factor, 1.0)
    blended = other_HWC + factor * (pixels_HWC - other_HWC)
    return jnp.clip(blended, 0, 255).astype(jnp.uint8)


def _grey(pixels_HWC: Array) -> Array:
    """Compute the luminance (ITU-R 601), rounded: (H, W, 1)."""
    if pixels_HWC.shape[-1] == 1:
        return pixels_HWC
    weights = jnp.array([0.299, 0.587, 0.114])
    return jnp.floor((pixels_HWC * weights[None, None]).sum(-1, keepdims=True) + 0.5)


def _smooth(pixels_HWC: Array) -> Array:
    """Average with the neighbours, the pixel itself five times; the edge stays."""
    height, width, _ = pixels_HWC.shape
    if min(height, width) < 3:
        return pixels_HWC
    total = sum(
        pixels_HWC[row : height - 2 + row, column : width - 2 + column]
        for row in range(3)
        for column in range(3)
    )
    inner = (total + 4 * pixels_HWC[1:-1, 1:-1]) / 13
    return pixels_HWC.at[1:-1, 1:-1].set(jnp.floor(inner + 0.5))


def _change_levels(image_HWC: Array, strength: Array) -> Array:
    """Posterise, solarise, stretch and equalise: (4, H, W, C) uint8."""
    bits = 8 - jnp.round(6 * strength).astype(jnp.uint8)
    posterized = image_HWC >> (8 - bits) << (8 - bits)
    threshold = 255 * (1 - strength)
    solarized = jnp.where(image_HWC < threshold, image_HWC, 255 - image_HWC)
    per_channel = jax.vmap(_equalize, in_axes=-1, out_axes=-1)
    return jnp.stack(
        [posterized, solarized, _stretch(image_HWC), per_channel(image_HWC)]
    )


def _stretch(image_HWC: Array) -> Array:
    """Stretch each channel's values to the range from 0 to 255."""
    pixels = image_HWC.astype(jnp.float32)
    low, high = (f(pixels, axis=(0, 1), keepdims=True) for f in (jnp.min, jnp.max))
    scale = jnp.where(high > low, 255 / jnp.maximum(high - low, 1), 1.0)
    stretched = jnp.where(high > low, (pixels - low) * scale, pixels)
    return jnp.clip(stretched, 0, 255).astype(jnp.uint8)


def _equalize(image_HW: Array) -> Array:
    """Make the values of a channel equally frequent, as Pillow does."""
    count = jnp.bincount(image_HW.ravel(), length=256)
    last = jnp.max(jnp.where(count > 0, jnp.arange(256), 0))
    step = (count.sum() - count[last]) // 255
    table = (step // 2 + jnp.cumsum(count) - count) // jnp.maximum(step, 1)
    table = jnp.clip(table, 0, 255).astype(jnp.uint8)
    return jnp.where(step == 0, image_HW, table[image_HW])
