"""Affine augmentation, against SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from train_jax.learning import affine

KEY = jax.random.key(0)
IMAGE_BHWC = np.random.default_rng(0).integers(0, 256, (2, 9, 12, 3), np.uint8)


def _with_scipy(image_HWC, matrix_22, shift_2):
    """Map points (x, y) from the centre; SciPy's are (row, column) from the corner."""
    inverse = np.linalg.inv(matrix_22)[::-1, ::-1]
    centre = (np.array(image_HWC.shape[:2]) - 1) / 2
    offset = centre - inverse @ (centre + shift_2[::-1])
    channels = [
        scipy.ndimage.affine_transform(
            image_HW.astype(float), inverse, offset, order=1, mode="constant"
        )
        for image_HW in np.moveaxis(image_HWC, -1, 0)
    ]
    return np.stack(channels, axis=-1)


def test_affine_is_that_of_scipy():
    rng = np.random.default_rng(1)
    matrix_B22 = np.eye(2) + rng.uniform(-0.4, 0.4, (2, 2, 2))
    shift_B2 = rng.uniform(-2, 2, (2, 2))
    ours = affine.affine(
        jnp.asarray(IMAGE_BHWC), jnp.asarray(matrix_B22), jnp.asarray(shift_B2)
    )
    for image, our, *arguments in zip(
        IMAGE_BHWC, np.asarray(ours, float), matrix_B22, shift_B2, strict=True
    ):
        expected = _with_scipy(image, *arguments)
        # SciPy cuts off sharply at the edge, where this one fades to black.
        inside = scipy.ndimage.binary_erosion(expected > 0, iterations=1)
        assert inside.mean() > 0.1
        np.testing.assert_allclose(our[inside], expected[inside], atol=0.51)


@pytest.mark.parametrize(
    "fields, matrix_22",
    [
        ({"rotation": 90.0}, [[0, -1], [1, 0]]),
        ({"scaling": 0.5}, [[1.5, 0], [0, 1.5]]),
        ({"shear": 45.0}, [[1, 1], [0, 1]]),
    ],
)
def test_the_largest_change_is_the_one_given(monkeypatch, fields, matrix_22):
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape, **_: jnp.ones(shape))
    image = jnp.asarray(IMAGE_BHWC)
    expected = affine.affine(
        image,
        jnp.broadcast_to(jnp.array(matrix_22, jnp.float32), (2, 2, 2)),
        jnp.zeros((2, 2)),
    )
    # The corner of a pixel may be rounded to either side.
    actual = np.asarray(affine.random_affine(KEY, image, **fields), int)
    assert (np.abs(actual - np.asarray(expected, int)) <= 1).mean() > 0.97


def test_a_shift_is_a_share_of_the_side(monkeypatch):
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape, **_: jnp.ones(shape))
    shifted = affine.random_affine(KEY, jnp.asarray(IMAGE_BHWC), shift=1 / 3)
    np.testing.assert_array_equal(shifted[:, 3:, 4:], IMAGE_BHWC[:, :-3, :-4])
    assert not np.asarray(shifted)[:, :3].any()


def test_amounts_are_spread_evenly_and_differ_between_images():
    image = np.zeros((2000, 1, 41, 1), np.uint8)
    image[:, :, 20] = 200
    shifted = np.asarray(affine.random_affine(KEY, jnp.asarray(image), shift=0.25))
    weights = shifted[:, 0, :, 0] / shifted[:, 0, :, 0].sum(axis=1, keepdims=True)
    moved = weights @ np.arange(41) - 20
    assert abs(moved.mean()) < 0.5 and 9.5 < np.abs(moved).max() <= 10.3
    np.testing.assert_allclose(moved.std(), 10.25 / 3**0.5, rtol=0.05)
