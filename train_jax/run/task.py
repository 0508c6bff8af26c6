"""Make the task that belongs to a dataset, with the statistics of its pixels."""

import dataclasses
import re
from typing import Literal

import numpy as np

from train_jax import data
from train_jax.config.fields import AugmentConfig, DatasetConfig
from train_jax.data import ImageSplit, Split
from train_jax.run.pixels import border_brightness, measure_channels, measure_pixels
from train_jax.tasks import Classification, Task, Translation

# Number of training images whose mean, deviation and border are measured.
_NUM_MEASURED = 1000

# Mean and standard deviation of each channel over the training split, of pixels in
# [0, 1]: the customary constants.
_STATISTICS = {
    "mnist": ((0.1307,), (0.3081,)),
    "fashion_mnist": ((0.2860,), (0.3530,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


def make_task(dataset: DatasetConfig, augment: AugmentConfig, train: Split) -> Task:
    """Make the task that belongs to a dataset.

    Raises:
        ValueError: for fields that do not fit the dataset.
    """
    if isinstance(train, ImageSplit):
        return _make_classification(dataset, augment, train)
    for field in dataclasses.fields(augment):
        value = getattr(augment, field.name)
        if value != field.default:
            raise ValueError(
                f"config.augment.{field.name} must be {field.default!r} for dataset "
                f"{dataset.name!r}, which has no images, got {value!r}"
            )
    lengths = (train.source_BS.shape[1], train.target_BT.shape[1])
    return Translation(train.num_symbols, *lengths)


def _make_classification(
    dataset: DatasetConfig, augment: AugmentConfig, train: ImageSplit
) -> Classification:
    image_shape = train.image_BHWC.shape[1:]
    side = min(image_shape[:2])
    if augment.crop_padding >= side:
        raise ValueError(
            f"config.augment.crop_padding must be less than {side}, the side of an "
            f"image, got {augment.crop_padding}"
        )
    num_channels = image_shape[-1]
    for name in ("saturation", "hue"):
        if getattr(augment, name) and num_channels != 3:
            raise ValueError(
                f"config.augment.{name} must be 0 for images of {num_channels} "
                f"channels, got {getattr(augment, name)}"
            )
    sample_BHWC = np.asarray(train.image_BHWC[:_NUM_MEASURED])
    mean, std = _choose_statistics(
        dataset.name, train, sample_BHWC, mean=dataset.mean, std=dataset.std
    )
    arguments = dataclasses.asdict(augment)
    del arguments["crop_area"]  # done when the images are loaded
    return Classification(
        image_shape,
        train.class_names,
        mean,
        std,
        augment=arguments,
        border=border_brightness(sample_BHWC),
    )


def _choose_statistics(
    dataset: str,
    train: ImageSplit,
    sample_BHWC: np.ndarray,
    *,
    mean: tuple[float, ...] | Literal["pixel"] | None,
    std: tuple[float, ...] | None,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Choose mean and standard deviation of the pixels, in [0, 1].

    Args:
        dataset: name of the set, whose statistics may be known.
        train: the training split, for a mean of each pixel.
        sample_BHWC: some of its images, uint8, to measure those of a folder.
        mean: `config.dataset.mean`.
        std: `config.dataset.std`.

    Returns:
        (mean, std), see `normalize`.

    Raises:
        ValueError: if there is not a value for each channel.
    """
    num_channels = sample_BHWC.shape[-1]
    for name, value in (("mean", mean), ("std", std)):
        if isinstance(value, tuple) and len(value) != num_channels:
            raise ValueError(
                f"config.dataset.{name} must have {num_channels} values, one for each "
                f"channel, got {value}"
            )
    of_set = channel_statistics(dataset, num_channels)
    if data.is_folder(dataset):
        of_set = measure_channels(sample_BHWC)
    if mean == "pixel":
        mean = measure_pixels(train)
    return mean or of_set[0], std or of_set[1]


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
