"""MixUp and CutMix: each image gets a part of another one, and of its target."""

import functools

import chex
import jax
import jax.numpy as jnp

from train_jax.learning.streams import stream

Array = jax.Array


def mix(
    key: Array,
    image_BHWC: Array,
    target_BY: Array,
    *,
    mixup_alpha: float = 0.0,
    cutmix_alpha: float = 0.0,
) -> tuple[Array, Array]:
    """Apply `mixup` or `cutmix`, whose α is above 0; of both, one, equally likely.

    Args:
        image_BHWC: normalised.
        target_BY: class probabilities.
        mixup_alpha: see `mixup`.
        cutmix_alpha: see `cutmix`.
    """
    _check_mixed(image_BHWC, target_BY)
    mixes = [
        functools.partial(function, stream(key, function.__name__), alpha=alpha)
        for function, alpha in ((mixup, mixup_alpha), (cutmix, cutmix_alpha))
        if alpha
    ]
    if not mixes:
        return image_BHWC, target_BY
    choice = jax.random.randint(stream(key, "mix"), (), 0, len(mixes))
    mixed = jax.lax.switch(choice, mixes, image_BHWC, target_BY)
    chex.assert_trees_all_equal_shapes(mixed, (image_BHWC, target_BY))
    return mixed


def mixup(
    key: Array, image_BHWC: Array, target_BY: Array, *, alpha: float
) -> tuple[Array, Array]:
    """Blend every image, and its target, with another one of the batch.

    The first one is blended with the last, and so on; of an odd batch, the one in the
    middle stays as it is.

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

    The images are paired as in `mixup`.

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
