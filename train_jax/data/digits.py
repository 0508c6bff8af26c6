"""Load scikit-learn's bundled digits: real images without a download."""

import importlib.metadata

import numpy as np

from train_jax.data import cache
from train_jax.data.split import ImageSplit, check_split_name


def load_digits(base: str) -> ImageSplit:
    """Load the 8x8 digits; train and test are always the same stratified partition.

    They are cached, as importing scikit-learn and reading its text is slow.
    """
    check_split_name(base, ("train", "test"), "digits")
    version = importlib.metadata.version("scikit-learn")
    paths = {
        each: cache.path_of(f"digits-{each}", [version, each])
        for each in ("train", "test")
    }
    cached = cache.read_cache(paths[base])
    if cached is not None:
        return cached
    splits = _read_digits()
    for each, split in splits.items():
        cache.write_cache(paths[each], split)
    return splits[base]


def _read_digits() -> dict[str, ImageSplit]:
    """Read both splits from scikit-learn."""
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    pixels_BD, label_B = datasets.load_digits(return_X_y=True)
    image_BHWC = np.rint(pixels_BD * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    train, test = train_test_split(
        np.arange(len(label_B)), test_size=360, stratify=label_B, random_state=0
    )
    label_B, names = np.asarray(label_B, np.int32), tuple("0123456789")
    return {
        base: ImageSplit(image_BHWC[index_B], label_B[index_B], names)
        for base, index_B in (("train", train), ("test", test))
    }
