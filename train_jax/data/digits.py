"""Load scikit-learn's bundled digits: real images without a download."""

import functools

import numpy as np

from train_jax.data.split import ImageSplit, check_split_name


def load_digits(base: str) -> ImageSplit:
    """Load the 8x8 digits; train and test are always the same stratified partition."""
    check_split_name(base, ("train", "test"), "digits")
    image_BHWC, label_B, index_of = _read()
    index_B = index_of[base]
    return ImageSplit(image_BHWC[index_B], label_B[index_B], tuple("0123456789"))


@functools.cache
def _read() -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Read all images, labels, and the indices of each split; takes half a second."""
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    pixels_BD, label_B = datasets.load_digits(return_X_y=True)
    image_BHWC = np.rint(pixels_BD * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    train, test = train_test_split(
        np.arange(len(label_B)), test_size=360, stratify=label_B, random_state=0
    )
    index_of = {"train": np.asarray(train), "test": np.asarray(test)}
    return image_BHWC, np.asarray(label_B, np.int32), index_of
