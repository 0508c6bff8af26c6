"""Augmentation and normalisation, batch by batch, on the device.

Every function is pure: the same key gives the same images.
"""

import functools
import re
import zlib

import chex
import jax
import jax.numpy as jnp

Array = jax.Array

# Mean and standard deviation of each channel over the training split, of pixels in
# [0, 1]: the customary constants.
_STATISTICS = {
    "mnist": ((0.1307,), (0.3081,)),
    "fashion_mnist": ((0.2860,), (0.3530,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


def channel_statistics(
    dataset: str, num_channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Look up a set's mean and standard deviation, a value for each channel.

    Args:
        dataset: TFDS name, of any config and version.
        num_channels: of its images.

    Returns:
        (mean, std) of pixels in [0, 1]; 0.5 and 0.5 for a set that is not known.
    """
    half = (0.5,) * num_channels
    return _STATISTICS.get(re.split("[/:]", dataset)[0], (half, half))


def normalize(
    image_BHWC: Array, *, mean: tuple[float, ...], std: tuple[float, ...]
) -> Array:
    """Scale pixels to [0, 1], subtract the mean, divide by the standard deviation.

    Args:
        image_BHWC: uint8.
        mean: of each channel, of pixels in [0, 1].
        std: likewise.

    Returns:
        image_BHWC: float32.
    """
    chex.assert_rank(image_BHWC, 4)
    chex.assert_type(image_BHWC, jnp.uint8)
    mean_C = jnp.asarray(mean, jnp.float32)
    std_C = jnp.asarray(std, jnp.float32)
    chex.assert_shape([mean_C, std_C], (image_BHWC.shape[-1],))
    pixels = image_BHWC.astype(jnp.float32) / 255
    normalized = (pixels - mean_C[None, None, None]) / std_C[None, None, None]
    chex.assert_equal_shape([normalized, image_BHWC])
    return normalized


def random_crop(key: Array, image_BHWC: Array, *, padding: int) -> Array:
    """Pad with black on all sides and cut each image's own size out at random.

    Args:
        padding: pixels on each side, hence the largest shift.

    Returns:
        image_BHWC: in the dtype given.
    """
    chex.assert_rank(image_BHWC, 4)
    batch, height, width, channels = image_BHWC.shape
    sides = [(0, 0), (padding, padding), (padding, padding), (0, 0)]
    padded = jnp.pad(image_BHWC, sides)
    offset_B2 = jax.random.randint(key, (batch, 2), 0, 2 * padding + 1)

    def crop(image_HWC, offset_2):
        start = (offset_2[0], offset_2[1], 0)
        return jax.lax.dynamic_slice(image_HWC, start, (height, width, channels))

    cropped = jax.vmap(crop)(padded, offset_B2)
    chex.assert_equal_shape([cropped, image_BHWC])
    return cropped


def random_flip(key: Array, image_BHWC: Array) -> Array:
    """Mirror each image left to right with probability one half."""
    chex.assert_rank(image_BHWC, 4)
    is_flipped = jax.random.bernoulli(key, shape=(image_BHWC.shape[0], 1, 1, 1))
    flipped = jnp.where(is_flipped, image_BHWC[:, :, ::-1], image_BHWC)
    chex.assert_equal_shape([flipped, image_BHWC])
    return flipped


def mixup(
    key: Array, image_BHWC: Array, target_BY: Array, *, alpha: float
) -> tuple[Array, Array]:
    """Blend every image, and its target, with another one of the batch.

    Args:
        image_BHWC: normalised.
        target_BY: class probabilities.
        alpha: of the distribution Beta(α, α) that the share is drawn from, once for
            the batch.

    References: arXiv:1710.09412, section 2.
    """
    _check_mixed(image_BHWC, target_BY)
    share = jax.random.beta(key, alpha, alpha)
    image, target = (share * x + (1 - share) * x[::-1] for x in (image_BHWC, target_BY))
    chex.assert_trees_all_equal_shapes((image, target), (image_BHWC, target_BY))
    return image, target


def cutmix(
    key: Array, image_BHWC: Array, target_BY: Array, *, alpha: float
) -> tuple[Array, Array]:
    """Paste a rectangle of another image of the batch into every image.

    Args:
        image_BHWC: normalised.
        target_BY: class probabilities, mixed in proportion to the area.
        alpha: of the distribution Beta(α, α) that the area is drawn from, once for
            the batch.

    References: arXiv:1905.04899, eq. 1 and 2.
    """
    _check_mixed(image_BHWC, target_BY)
    _, height, width, _ = image_BHWC.shape
    share_key, row_key, column_key = jax.random.split(key, 3)
    side = jnp.sqrt(1 - jax.random.beta(share_key, alpha, alpha))
    inside_H = _span(row_key, height, side)
    inside_W = _span(column_key, width, side)
    inside_HW = inside_H[:, None] & inside_W[None, :]
    area = inside_HW.mean()
    image = jnp.where(inside_HW[None, :, :, None], image_BHWC[::-1], image_BHWC)
    target = (1 - area) * target_BY + area * target_BY[::-1]
    chex.assert_trees_all_equal_shapes((image, target), (image_BHWC, target_BY))
    return image, target


def _check_mixed(image_BHWC: Array, target_BY: Array) -> None:
    """Assert that there is a target for each image."""
    chex.assert_rank([image_BHWC, target_BY], [4, 2])
    chex.assert_equal_shape_prefix([image_BHWC, target_BY], 1)


def _span(key: Array, length: int, fraction: Array) -> Array:
    """Mark a random stretch of an axis, cut off at the ends: bool (length,)."""
    centre = jax.random.uniform(key) * length
    return jnp.abs(jnp.arange(length) + 0.5 - centre) <= fraction * length / 2


def augment_batch(
    key: Array,
    image_BHWC: Array,
    label_B: Array,
    *,
    num_classes: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    crop_padding: int = 0,
    flip: bool = False,
    mixup_alpha: float = 0.0,
    cutmix_alpha: float = 0.0,
) -> tuple[Array, Array]:
    """Turn raw images and labels into what the model trains on.

    With both mixup and cutmix, each batch gets one of them, either equally likely.

    Args:
        image_BHWC: uint8.
        label_B: integers.

    Returns:
        image_BHWC: float32, augmented and normalised.
        target_BY: float32 class probabilities.
    """
    chex.assert_rank([image_BHWC, label_B], [4, 1])
    chex.assert_equal_shape_prefix([image_BHWC, label_B], 1)
    if crop_padding:
        crop_key = stream(key, "crop")
        image_BHWC = random_crop(crop_key, image_BHWC, padding=crop_padding)
    if flip:
        image_BHWC = random_flip(stream(key, "flip"), image_BHWC)
    image_BHWC = normalize(image_BHWC, mean=mean, std=std)
    target_BY = jax.nn.one_hot(label_B, num_classes)

    mixes = [
        functools.partial(function, stream(key, function.__name__), alpha=alpha)
        for function, alpha in ((mixup, mixup_alpha), (cutmix, cutmix_alpha))
        if alpha
    ]
    if mixes:
        choice = jax.random.randint(stream(key, "mix"), (), 0, len(mixes))
        image_BHWC, target_BY = jax.lax.switch(choice, mixes, image_BHWC, target_BY)
    chex.assert_rank(image_BHWC, 4)
    chex.assert_shape(target_BY, (label_B.shape[0], num_classes))
    return image_BHWC, target_BY


def stream(key: Array, name: str) -> Array:
    """Derive the key of a named stream of random numbers.

    Each augmentation has one of its own, so that switching one off changes no other.
    """
    chex.assert_shape(key, ())
    stream_key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    chex.assert_shape(stream_key, ())
    return stream_key
