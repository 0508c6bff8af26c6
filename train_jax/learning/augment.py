"""Augmentation and normalisation, batch by batch, on the device.

Every function is pure: the same key gives the same images.
"""

import math
from typing import Literal

import chex
import jax
import jax.numpy as jnp

from train_jax.learning.affine import random_affine
from train_jax.learning.color import color_jitter
from train_jax.learning.mixing import mix
from train_jax.learning.streams import stream
from train_jax.learning.trivial_augment import trivial_augment as apply_trivial

Array = jax.Array
Fill = Literal["black", "reflection"]
Flip = Literal["random", "alternating"]
TestAugmentation = Literal["flip", "flip_shift"]


def normalize(
    image_BHWC: Array, *, mean: tuple[float, ...], std: tuple[float, ...]
) -> Array:
    """Scale pixels to [0, 1], subtract the mean, divide by the standard deviation.

    Args:
        image_BHWC: uint8.
        mean: of pixels in [0, 1]: C values, one for each channel, or H · W · C, one for
            each value of an image.
        std: of each channel.

    Returns:
        image_BHWC: float32.
    """
    chex.assert_rank(image_BHWC, 4)
    chex.assert_type(image_BHWC, jnp.uint8)
    num_channels = image_BHWC.shape[-1]
    std_C = jnp.asarray(std, jnp.float32)
    chex.assert_shape(std_C, (num_channels,))
    mean_HWC = jnp.asarray(mean, jnp.float32)
    is_of_channels = len(mean) == num_channels
    shape = (1, 1, num_channels) if is_of_channels else image_BHWC.shape[1:]
    chex.assert_size(mean_HWC, math.prod(shape))
    pixels = image_BHWC.astype(jnp.float32) / 255
    normalized = (pixels - mean_HWC.reshape(1, *shape)) / std_C[None, None, None]
    chex.assert_equal_shape([normalized, image_BHWC])
    return normalized


def random_crop(
    key: Array, image_BHWC: Array, *, padding: int, fill: Fill = "black"
) -> Array:
    """Pad on all sides and cut each image's own size out at random.

    Args:
        padding: pixels on each side, hence the largest shift.
        fill: what is padded: "black", or the image's "reflection".

    Returns:
        image_BHWC: in the dtype given.
    """
    chex.assert_rank(image_BHWC, 4)
    batch, height, width, channels = image_BHWC.shape
    sides = [(0, 0), (padding, padding), (padding, padding), (0, 0)]
    padded = jnp.pad(image_BHWC, sides, "constant" if fill == "black" else "reflect")
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


def alternating_flip(index_B: Array, epoch: Array, image_BHWC: Array) -> Array:
    """Mirror half of the images, left to right, and in the next epoch the others.

    Within two epochs each image is seen both ways. The images of even epochs are
    chosen by a hash of their index.

    Args:
        index_B: index of each image in the training split, integers.
        epoch: a scalar, from 0.

    References: arXiv:2404.00498, section 3.6.
    """
    chex.assert_rank([index_B, epoch, image_BHWC], [1, 0, 4])
    chex.assert_equal_shape_prefix([index_B, image_BHWC], 1)
    # Knuth's multiplicative hash: the highest bit of the product.
    hashed_B = index_B.astype(jnp.uint32) * jnp.uint32(2654435761) >> 31
    is_flipped = (hashed_B + epoch.astype(jnp.uint32)) % 2 == 1
    flipped = jnp.where(
        is_flipped[:, None, None, None], image_BHWC[:, :, ::-1], image_BHWC
    )
    chex.assert_equal_shape([flipped, image_BHWC])
    return flipped


def random_erasing(
    key: Array,
    image_BHWC: Array,
    *,
    rate: float,
    area: tuple[float, float] = (0.02, 1 / 3),
    ratio: tuple[float, float] = (0.3, 1 / 0.3),
) -> Array:
    """Set a rectangle of some images to zero.

    A rectangle that is too high or too wide for the image is cut off at its side.

    Args:
        image_BHWC: normalised.
        rate: share of the images that are changed.
        area: smallest and largest share of the image that is erased.
        ratio: smallest and largest ratio of height to width.

    References: arXiv:1708.04896, algorithm 1.
    """
    chex.assert_rank(image_BHWC, 4)
    batch, height, width, _ = image_BHWC.shape
    keys = jax.random.split(key, 5)
    is_changed_B = jax.random.bernoulli(keys[0], rate, (batch,))
    area_B = jax.random.uniform(keys[1], (batch,), minval=area[0], maxval=area[1])
    log_ratio = jnp.log(jnp.asarray(ratio))
    ratio_B = jnp.exp(
        jax.random.uniform(keys[2], (batch,), minval=log_ratio[0], maxval=log_ratio[1])
    )
    masks = []
    scale = (height * width) ** 0.5
    for axis_key, length, root in (
        (keys[3], height, jnp.sqrt(area_B * ratio_B)),
        (keys[4], width, jnp.sqrt(area_B / ratio_B)),
    ):
        side_B = jnp.round(jnp.minimum(root * scale, length))
        start_B = jnp.floor(
            jax.random.uniform(axis_key, (batch,)) * (length - side_B + 1)
        )
        place = jnp.arange(length)[None] - start_B[:, None]
        masks.append((place >= 0) & (place < side_B[:, None]))
    inside_BH, inside_BW = masks
    inside = inside_BH[:, :, None] & inside_BW[:, None, :]
    inside &= is_changed_B[:, None, None]
    erased = jnp.where(inside[..., None], 0, image_BHWC)
    chex.assert_equal_shape([erased, image_BHWC])
    return erased


def augment_batch(
    key: Array,
    image_BHWC: Array,
    label_B: Array,
    *,
    num_classes: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    index_B: Array | None = None,
    epoch: Array | None = None,
    crop_padding: int = 0,
    crop_fill: Fill = "black",
    flip: Flip | None = None,
    rotation: float = 0.0,
    scaling: float = 0.0,
    shear: float = 0.0,
    shift: float = 0.0,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
    trivial_augment: bool = False,
    erasing_rate: float = 0.0,
    mixup_alpha: float = 0.0,
    cutmix_alpha: float = 0.0,
) -> tuple[Array, Array]:
    """Turn raw images and labels into what the model trains on.

    Args:
        image_BHWC: uint8.
        label_B: integers.
        index_B: see `alternating_flip`, which alone needs it.
        epoch: likewise.
        rotation, scaling, shear, shift: see `random_affine`.
        brightness, contrast, saturation, hue: see `color_jitter`.

    Returns:
        image_BHWC: float32, augmented and normalised.
        target_BY: float32 class probabilities.
    """
    chex.assert_rank([image_BHWC, label_B], [4, 1])
    chex.assert_equal_shape_prefix([image_BHWC, label_B], 1)
    if crop_padding:
        how = {"padding": crop_padding, "fill": crop_fill}
        image_BHWC = random_crop(stream(key, "crop"), image_BHWC, **how)
    image_BHWC = _flip(key, image_BHWC, flip, index_B, epoch)
    moves = {"rotation": rotation, "scaling": scaling, "shear": shear, "shift": shift}
    colors = {"brightness": brightness, "contrast": contrast}
    colors |= {"saturation": saturation, "hue": hue}
    image_BHWC = random_affine(stream(key, "affine"), image_BHWC, **moves)
    image_BHWC = color_jitter(stream(key, "color"), image_BHWC, **colors)
    if trivial_augment:
        image_BHWC = apply_trivial(stream(key, "trivial"), image_BHWC)
    image_BHWC = normalize(image_BHWC, mean=mean, std=std)
    if erasing_rate:
        erasing_key = stream(key, "erasing")
        image_BHWC = random_erasing(erasing_key, image_BHWC, rate=erasing_rate)
    target_BY = jax.nn.one_hot(label_B, num_classes)
    image_BHWC, target_BY = mix(
        key, image_BHWC, target_BY, mixup_alpha=mixup_alpha, cutmix_alpha=cutmix_alpha
    )
    chex.assert_rank(image_BHWC, 4)
    chex.assert_shape(target_BY, (label_B.shape[0], num_classes))
    return image_BHWC, target_BY


def _flip(
    key: Array,
    image_BHWC: Array,
    how: Flip | None,
    index_B: Array | None,
    epoch: Array | None,
) -> Array:
    """Mirror images at random, or in every second epoch, or not at all."""
    if how is None:
        return image_BHWC
    if how == "random":
        return random_flip(stream(key, "flip"), image_BHWC)
    assert index_B is not None and epoch is not None
    return alternating_flip(index_B, epoch, image_BHWC)


def augmented_views(
    image_BHWC: Array, name: TestAugmentation
) -> list[tuple[float, Array]]:
    """List the views of test images whose outputs are averaged, with their weights.

    Args:
        image_BHWC: raw, as each pixel may have a mean of its own.
        name: "flip" for the images and their mirror images; "flip_shift" for these, of
            half the weight, and both shifted by a pixel up and left, and down and
            right, with the edge reflected.

    Returns:
        (weight, image_BHWC) of each view; the weights sum to 1.

    References: arXiv:2404.00498, section 3.5.
    """
    chex.assert_rank(image_BHWC, 4)
    _, height, width, _ = image_BHWC.shape
    shifted = [image_BHWC]
    if name == "flip_shift":
        padded = jnp.pad(image_BHWC, [(0, 0), (1, 1), (1, 1), (0, 0)], "reflect")
        shifted += [padded[:, i : height + i, i : width + i] for i in (0, 2)]
    weights = (0.5,) if name == "flip" else (0.25, 0.125, 0.125)
    views = [
        (weight, view)
        for weight, image in zip(weights, shifted, strict=True)
        for view in (image, image[:, :, ::-1])
    ]
    chex.assert_equal_shape([image_BHWC, *(view for _, view in views)])
    return views
