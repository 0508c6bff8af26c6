"""Augmentation: what it changes, what it keeps, and that the key decides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train_jax.learning import augment

KEY = jax.random.key(0)


def _images(batch=64, height=6, width=5, channels=3):
    shape = (batch, height, width, channels)
    return jax.random.randint(jax.random.key(1), shape, 1, 256).astype(jnp.uint8)


def test_normalize_subtracts_mean_and_divides_by_std():
    image = jnp.full((2, 3, 3, 2), 51, jnp.uint8)
    out = augment.normalize(image, mean=(0.1, 0.2), std=(0.5, 0.25))
    np.testing.assert_allclose(out[..., 0], (0.2 - 0.1) / 0.5, rtol=1e-6)
    np.testing.assert_allclose(out[..., 1], 0.0, atol=1e-7)


def test_random_crop_is_a_shift_with_black_borders():
    image = _images()
    padding = 2
    out = np.asarray(augment.random_crop(KEY, image, padding=padding))
    padded = np.pad(image, [(0, 0), (padding,) * 2, (padding,) * 2, (0, 0)])
    shifts = set()
    for i in range(len(image)):
        matches = [
            (y, x)
            for y in range(2 * padding + 1)
            for x in range(2 * padding + 1)
            if np.array_equal(padded[i, y : y + 6, x : x + 5], out[i])
        ]
        assert len(matches) == 1
        shifts.update(matches)
    assert len(shifts) > 15  # of 25: each image has a shift of its own
    assert {y for y, _ in shifts} == {x for _, x in shifts} == set(range(5))


def test_random_flip_mirrors_about_half_of_the_images():
    image = _images(batch=400)
    out = augment.random_flip(KEY, image)
    same = np.asarray((out == image).all(axis=(1, 2, 3)))
    mirrored = np.asarray((out == image[:, :, ::-1]).all(axis=(1, 2, 3)))
    assert (same ^ mirrored).all()
    assert 150 < mirrored.sum() < 250


def test_mixup_blends_images_and_targets_alike():
    image = _images(batch=4).astype(jnp.float32)
    target = jnp.eye(4)
    mixed, mixed_target = augment.mixup(KEY, image, target, alpha=1.0)
    share = float(mixed_target[0, 0])
    assert 0 < share < 1
    np.testing.assert_allclose(
        mixed, share * image + (1 - share) * image[::-1], rtol=1e-5
    )
    np.testing.assert_allclose(mixed_target.sum(axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_cutmix_mixes_targets_by_the_area_pasted(seed):
    zeros, ones = jnp.zeros((1, 16, 16, 1)), jnp.ones((1, 16, 16, 1))
    image = jnp.concatenate([zeros, ones])
    mixed, target = augment.cutmix(jax.random.key(seed), image, jnp.eye(2), alpha=1.0)
    pasted = np.asarray(mixed[0, :, :, 0])
    np.testing.assert_allclose(target[0], [1 - pasted.mean(), pasted.mean()], atol=1e-6)
    rows, columns = pasted.any(axis=1), pasted.any(axis=0)
    np.testing.assert_array_equal(pasted, np.outer(rows, columns))  # one rectangle


def test_augment_batch_depends_on_the_key_alone():
    image, label = _images(), jnp.arange(64) % 10
    options = {
        "num_classes": 10,
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
        "crop_padding": 1,
        "flip": True,
        "mixup_alpha": 0.5,
        "cutmix_alpha": 0.5,
    }
    first = augment.augment_batch(KEY, image, label, **options)
    again = augment.augment_batch(KEY, image, label, **options)
    other = augment.augment_batch(jax.random.key(9), image, label, **options)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first[0], other[0])


def test_switching_one_augmentation_off_changes_no_other():
    image, label = _images(), jnp.arange(64) % 10
    how = {"num_classes": 10, "mean": (0.0,) * 3, "std": (1 / 255,) * 3}

    def images(**options):
        return augment.augment_batch(KEY, image, label, **how, **options)[0]

    def normalized(pixels):
        return augment.normalize(pixels, mean=how["mean"], std=how["std"])

    crop_key, flip_key = (augment.stream(KEY, name) for name in ("crop", "flip"))
    cropped = augment.random_crop(crop_key, image, padding=1)
    flipped = augment.random_flip(flip_key, image)
    both = augment.random_flip(flip_key, cropped)
    for pixels, options in (
        (cropped, {"crop_padding": 1}),
        (flipped, {"flip": True}),
        (both, {"crop_padding": 1, "flip": True}),
    ):
        np.testing.assert_array_equal(images(**options), normalized(pixels))
    alone = images(mixup_alpha=0.5)
    mixup_key = augment.stream(KEY, "mixup")
    expected, _ = augment.mixup(
        mixup_key, normalized(image), jax.nn.one_hot(label, 10), alpha=0.5
    )
    np.testing.assert_allclose(alone, expected, rtol=1e-6)


def test_augment_batch_without_options_only_normalises():
    image, label = _images(), jnp.arange(64) % 10
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    out, target = augment.augment_batch(
        KEY, image, label, num_classes=10, mean=mean, std=std
    )
    np.testing.assert_array_equal(out, augment.normalize(image, mean=mean, std=std))
    np.testing.assert_array_equal(target.argmax(axis=1), label)
    np.testing.assert_array_equal(target.sum(axis=1), 1)


def test_channel_statistics_have_a_default():
    for name in ("mnist", "mnist:3.0.1", "mnist/default:3.0.1"):
        assert augment.channel_statistics(name, 1) == ((0.1307,), (0.3081,))
    assert augment.channel_statistics("svhn_cropped", 3) == ((0.5,) * 3, (0.5,) * 3)
