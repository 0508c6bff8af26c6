"""TrivialAugment, against Pillow."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from train_jax.learning import trivial_augment as trivial

KEY = jax.random.key(0)
IMAGE_BHWC = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
# Neighbouring pixels of photographs are alike, and their histograms are not flat.
IMAGE_BHWC[1] = np.cumsum(IMAGE_BHWC[1] % 7, axis=1) + 40
IMAGE_BHWC[2] = 100 + IMAGE_BHWC[2] % 50


def _affine(image: Image.Image, *rows: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, rows)


def _with_pillow(name: str, image: Image.Image, strength: float) -> Image.Image:
    size, factor = abs(strength), 1 + 0.99 * strength
    results = {
        "identity": lambda: image,
        "shear_x": lambda: _affine(image, 1, 0.99 * strength, 0, 0, 1, 0),
        "shear_y": lambda: _affine(image, 1, 0, 0, 0.99 * strength, 1, 0),
        "translate_x": lambda: _affine(image, 1, 0, 32 * strength, 0, 1, 0),
        "translate_y": lambda: _affine(image, 1, 0, 0, 0, 1, 32 * strength),
        "rotate": lambda: image.rotate(135 * strength),
        "brightness": lambda: ImageEnhance.Brightness(image).enhance(factor),
        "saturation": lambda: ImageEnhance.Color(image).enhance(factor),
        "contrast": lambda: ImageEnhance.Contrast(image).enhance(factor),
        "sharpness": lambda: ImageEnhance.Sharpness(image).enhance(factor),
        "posterize": lambda: ImageOps.posterize(image, 8 - round(6 * size)),
        "solarize": lambda: ImageOps.solarize(image, math.ceil(255 * (1 - size))),
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
    }
    return results[name]()


@pytest.mark.parametrize("name", trivial.OPERATIONS)
def test_operations_equal_those_of_pillow(name):
    apply = jax.jit(trivial.apply_operations)
    for strength in (-1.0, -0.6, -0.1, 0.0, 0.3, 0.7, 1.0):
        operation = trivial.OPERATIONS.index(name)
        ours = apply(
            jnp.asarray(IMAGE_BHWC), jnp.full(3, operation), jnp.full(3, strength)
        )
        for image, our in zip(IMAGE_BHWC, np.asarray(ours, int), strict=True):
            expected = np.asarray(
                _with_pillow(name, Image.fromarray(image), strength), int
            )
            differs = np.abs(our - expected) > 1
            # A pixel on the border of two may come from either.
            assert differs.mean() < (0.03 if name == "rotate" else 0.001), strength


def test_it_draws_every_operation_and_keeps_shape_and_dtype():
    image_BHWC = jnp.asarray(np.repeat(IMAGE_BHWC[1:2], 256, axis=0))
    augment = jax.jit(trivial.trivial_augment)
    out = augment(KEY, image_BHWC)
    assert out.shape == image_BHWC.shape and out.dtype == jnp.uint8
    different = {np.asarray(image).tobytes() for image in out}
    assert len(different) > 10 * len(trivial.OPERATIONS)
    np.testing.assert_array_equal(out, augment(KEY, image_BHWC))


def test_it_takes_images_of_one_channel():
    augment = jax.jit(trivial.trivial_augment)
    out = augment(KEY, jnp.asarray(IMAGE_BHWC[..., :1]))
    assert out.shape == (3, 32, 32, 1)
