"""Colour jitter, against Pillow and colorsys."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from train_jax.learning import color

KEY = jax.random.key(0)
IMAGE_HWC = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
NAMES = ("brightness", "contrast", "saturation", "hue")


def _adjust(**factors: float) -> np.ndarray:
    all_factors = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}
    values = list((all_factors | factors).values())
    return np.asarray(color.adjust_color(jnp.asarray(IMAGE_HWC), jnp.array(values)))


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0, 1.7])
@pytest.mark.parametrize(
    "name, enhance",
    [
        ("brightness", ImageEnhance.Brightness),
        ("contrast", ImageEnhance.Contrast),
        ("saturation", ImageEnhance.Color),
    ],
)
def test_factors_are_those_of_pillow(name, enhance, factor):
    expected = np.asarray(enhance(Image.fromarray(IMAGE_HWC)).enhance(factor), int)
    # Pillow rounds the grey and the result.
    assert np.abs(_adjust(**{name: factor}).astype(int) - expected).max() <= 2


@pytest.mark.parametrize("shift", [-0.5, -0.1, 0.0, 0.25, 0.5])
def test_hue_is_shifted_as_in_colorsys(shift):
    actual = _adjust(hue=shift)
    for pixel, our in zip(IMAGE_HWC.reshape(-1, 3), actual.reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel / 255)
        expected = colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value)
        np.testing.assert_allclose(our, 255 * np.array(expected), atol=0.51)


def test_a_grey_image_has_no_hue():
    image = jnp.asarray(IMAGE_HWC[..., :1])
    for image_HWC in (image, jnp.repeat(image, 3, axis=-1)):
        factors = jnp.array([1.0, 1.0, 0.3, 0.2])
        np.testing.assert_allclose(
            np.asarray(color.adjust_color(image_HWC, factors), int), image_HWC, atol=1
        )


@pytest.mark.parametrize("name", NAMES)
def test_jitter_draws_a_change_for_each_image(name):
    image_BHWC = jnp.broadcast_to(jnp.asarray(IMAGE_HWC), (8, 16, 16, 3))
    same = color.color_jitter(KEY, image_BHWC)
    np.testing.assert_array_equal(same, image_BHWC)
    changed = color.color_jitter(KEY, image_BHWC, **{name: 0.4})
    np.testing.assert_array_equal(
        changed, color.color_jitter(KEY, image_BHWC, **{name: 0.4})
    )
    assert len(np.unique(np.asarray(changed), axis=0)) == 8
