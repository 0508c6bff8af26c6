"""Measure the pixels of training images: mean, standard deviation, border."""

import numpy as np

from train_jax.data import ImageSplit


def measure_pixels(train: ImageSplit) -> tuple[float, ...]:
    """Compute the mean image, in [0, 1]: H · W · C values.

    Raises:
        ValueError: if the images are not in memory.
    """
    if train.is_streamed:
        raise ValueError(
            "config.dataset.mean must be a tuple of numbers, or None, for images that "
            "are streamed, got 'pixel'"
        )
    mean_HWC = np.asarray(train.image_BHWC).mean(axis=0, dtype=np.float64) / 255
    return tuple(mean_HWC.ravel().round(6).tolist())


def measure_channels(
    image_BHWC: np.ndarray,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Compute mean and standard deviation of each channel of uint8 images, in [0, 1].

    A channel of one value gets the deviation 1.
    """
    mean, std = [], []
    for channel in range(image_BHWC.shape[-1]):
        counts = np.bincount(image_BHWC[..., channel].reshape(-1), minlength=256)
        share, value = counts / counts.sum(), np.arange(256) / 255
        average = float(share @ value)
        mean.append(average)
        std.append(float(share @ (value - average) ** 2) ** 0.5 or 1.0)
    return tuple(mean), tuple(std)


def border_brightness(image_BHWC: np.ndarray) -> float:
    """Compute the mean brightness of the outermost pixels of uint8 images, 0 to 1."""
    inside = np.zeros(image_BHWC.shape[1:3], bool)
    inside[1:-1, 1:-1] = True
    return float(image_BHWC[:, ~inside].mean(dtype=np.float64) / 255)
