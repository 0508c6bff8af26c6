"""Colour jitter: random brightness, contrast, saturation and hue."""

import chex
import jax
import jax.numpy as jnp

Array = jax.Array

# Share of red, green and blue in an image's grey (ITU-R BT.601).
_GREY = (0.299, 0.587, 0.114)


def color_jitter(
    key: Array,
    image_BHWC: Array,
    *,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
) -> Array:
    """Change brightness, contrast, saturation and hue of each image, in this order.

    Args:
        image_BHWC: uint8, of 1 or 3 channels; saturation and hue need 3.
        brightness: most change of the factor, in [0, 1]: 0.4 for 0.6 to 1.4.
        contrast: likewise.
        saturation: likewise.
        hue: most shift along the circle of hues, of length 1; in [0, 0.5].

    Returns:
        image_BHWC: uint8.
    """
    chex.assert_rank(image_BHWC, 4)
    chex.assert_type(image_BHWC, jnp.uint8)
    if not (brightness or contrast or saturation or hue):
        return image_BHWC
    most = jnp.array([brightness, contrast, saturation, hue], jnp.float32)
    draws = jax.random.uniform(key, (len(image_BHWC), 4), minval=-1.0) * most[None]
    factor_B4 = draws + jnp.array([1.0, 1.0, 1.0, 0.0])[None]
    out = jax.vmap(adjust_color)(image_BHWC, factor_B4)
    chex.assert_equal_shape([out, image_BHWC])
    return out


def adjust_color(image_HWC: Array, factors: Array) -> Array:
    """Change one image's brightness, contrast, saturation and hue.

    Args:
        image_HWC: uint8, of 1 or 3 channels.
        factors: of brightness, contrast and saturation, 1 for no change, and the shift
            of the hue; (4,).

    Returns:
        image_HWC: uint8.
    """
    chex.assert_rank(image_HWC, 3)
    chex.assert_shape(factors, (4,))
    brightness, contrast, saturation, hue = factors
    pixels = image_HWC.astype(jnp.float32)
    pixels = jnp.clip(pixels * brightness, 0, 255)
    grey = _grey(pixels).mean()
    pixels = jnp.clip(grey + contrast * (pixels - grey), 0, 255)
    if image_HWC.shape[-1] == 3:
        grey_HW1 = _grey(pixels)
        pixels = jnp.clip(grey_HW1 + saturation * (pixels - grey_HW1), 0, 255)
        pixels = _shift_hue(pixels, hue)
    out = jnp.round(pixels).astype(jnp.uint8)
    chex.assert_equal_shape([out, image_HWC])
    return out


def _grey(pixels_HWC: Array) -> Array:
    """Compute how bright each pixel is: (H, W, 1)."""
    if pixels_HWC.shape[-1] == 1:
        return pixels_HWC
    return (pixels_HWC * jnp.array(_GREY)[None, None]).sum(axis=-1, keepdims=True)


def _shift_hue(pixels_HWC: Array, shift: Array) -> Array:
    """Turn the hue of red, green and blue; value and saturation (HSV) stay."""
    value = pixels_HWC.max(axis=-1)
    chroma = value - pixels_HWC.min(axis=-1)
    red, green, blue = jnp.moveaxis(pixels_HWC, -1, 0)
    safe = jnp.where(chroma > 0, chroma, 1.0)
    sixths = jnp.where(
        value == red,
        (green - blue) / safe,
        jnp.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    sixths = sixths + 6 * shift
    # Each channel falls linearly from `value` by `chroma`, 1 to 2 sixths from its own.
    channels = [
        value - chroma * jnp.clip(jnp.abs((sixths - n + 3) % 6 - 3) - 1, 0, 1)
        for n in (0, 2, 4)
    ]
    return jnp.stack(channels, axis=-1)
