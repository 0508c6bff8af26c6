"""Augmentation: what it changes, what it keeps, and that the key decides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train_jax.learning import augment, mixing
from train_jax.learning.streams import stream
from train_jax.run.task import channel_statistics

KEY = jax.random.key(0)


def _images(batch=64, height=6, width=5, channels=3):
    shape = (batch, height, width, channels)
    return jax.random.randint(jax.random.key(1), shape, 1, 256).astype(jnp.uint8)


def test_normalize_subtracts_mean_and_divides_by_std():
    image = jnp.full((2, 3, 3, 2), 51, jnp.uint8)
    out = augment.normalize(image, mean=(0.1, 0.2), std=(0.5, 0.25))
    np.testing.assert_allclose(out[..., 0], (0.2 - 0.1) / 0.5, rtol=1e-6)
    np.testing.assert_allclose(out[..., 1], 0.0, atol=1e-7)


def test_normalize_subtracts_a_mean_of_each_pixel():
    image, mean_HWC = _images(), np.random.default_rng(0).random((6, 5, 3))
    mean, std = tuple(mean_HWC.ravel().tolist()), (0.5, 0.25, 2.0)
    out = augment.normalize(image, mean=mean, std=std)
    expected = (np.asarray(image) / 255 - mean_HWC) / std
    np.testing.assert_allclose(out, expected, atol=1e-5)
    with pytest.raises(AssertionError):
        augment.normalize(image, mean=mean[3:], std=std)


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
    mixed, mixed_target = mixing.mixup(KEY, image, target, alpha=1.0)
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
    mixed, target = mixing.cutmix(jax.random.key(seed), image, jnp.eye(2), alpha=1.0)
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
        "flip": "random",
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

    crop_key, flip_key = (stream(KEY, name) for name in ("crop", "flip"))
    cropped = augment.random_crop(crop_key, image, padding=1)
    flipped = augment.random_flip(flip_key, image)
    both = augment.random_flip(flip_key, cropped)
    for pixels, options in (
        (cropped, {"crop_padding": 1}),
        (flipped, {"flip": "random"}),
        (both, {"crop_padding": 1, "flip": "random"}),
    ):
        np.testing.assert_array_equal(images(**options), normalized(pixels))
    alone = images(mixup_alpha=0.5)
    mixup_key = stream(KEY, "mixup")
    expected, _ = mixing.mixup(
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
        assert channel_statistics(name, 1) == ((0.1307,), (0.3081,))
    assert channel_statistics("svhn_cropped", 3) == ((0.5,) * 3, (0.5,) * 3)


def test_a_reflected_crop_shows_what_lies_inside_the_edge():
    image = jnp.arange(16, dtype=jnp.uint8).reshape(1, 4, 4, 1)
    padded = np.pad(image[0, :, :, 0], 2, "reflect")
    windows = {
        padded[row : row + 4, column : column + 4].tobytes()
        for row in range(5)
        for column in range(5)
    }
    for seed in range(20):
        cropped = augment.random_crop(
            jax.random.key(seed), image, padding=2, fill="reflection"
        )
        assert np.asarray(cropped[0, :, :, 0]).tobytes() in windows


def test_alternating_flips_show_each_image_both_ways_in_two_epochs():
    image, index_B = _images(), jnp.arange(64) + 1000
    epochs = [
        np.asarray(augment.alternating_flip(index_B, jnp.int32(epoch), image))
        for epoch in range(3)
    ]
    is_flipped_B = (epochs[0] != np.asarray(image)).any(axis=(1, 2, 3))
    assert 20 < is_flipped_B.sum() < 44
    np.testing.assert_array_equal(epochs[1], epochs[0][:, :, ::-1])
    np.testing.assert_array_equal(epochs[2], epochs[0])


def test_erasing_sets_a_rectangle_of_some_images_to_zero():
    image = jnp.ones((400, 20, 30, 1))
    erased = np.asarray(augment.random_erasing(KEY, image, rate=0.25))[..., 0] == 0
    is_changed_B = erased.any(axis=(1, 2))
    assert 0.18 < is_changed_B.mean() < 0.32
    for mask in erased[is_changed_B]:
        rows, columns = mask.any(axis=1), mask.any(axis=0)
        np.testing.assert_array_equal(mask, np.outer(rows, columns))
        assert 0.01 < mask.mean() < 0.4
    # Every pixel is erased now and then, those in the corners as well.
    always = augment.random_erasing(KEY, jnp.ones((2000, 8, 8, 1)), rate=1.0)
    assert (np.asarray(always) == 0).any(axis=0).all()


def test_the_proportions_of_what_is_erased_are_those_of_pixels():
    image = jnp.ones((20, 32, 64, 1))
    how = {"rate": 1.0, "area": (0.1, 0.1), "ratio": (1.0, 1.0)}
    erased = np.asarray(augment.random_erasing(KEY, image, **how))[..., 0] == 0
    side = round((0.1 * 32 * 64) ** 0.5)
    assert (erased.any(axis=2).sum(axis=1) == side).all()
    assert (erased.any(axis=1).sum(axis=1) == side).all()


def test_views_are_mirrored_and_shifted():
    image = jnp.arange(16.0).reshape(1, 4, 4, 1)
    flip = augment.augmented_views(image, "flip")
    assert [weight for weight, _ in flip] == [0.5, 0.5]
    np.testing.assert_array_equal(flip[1][1], image[:, :, ::-1])
    views = augment.augmented_views(image, "flip_shift")
    assert sum(weight for weight, _ in views) == 1
    padded = np.pad(image[0, :, :, 0], 1, "reflect")
    np.testing.assert_array_equal(views[2][1][0, :, :, 0], padded[:4, :4])
    np.testing.assert_array_equal(views[4][1][0, :, :, 0], padded[2:, 2:])
    np.testing.assert_array_equal(views[5][1], views[4][1][:, :, ::-1])
