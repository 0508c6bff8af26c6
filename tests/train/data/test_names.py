"""Names of datasets are spelt as TFDS spells them."""

import numpy as np
import pytest

from tests.train.data.tiny_set import message_of
from train_jax import data


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mnist", "mnist"),
        ("MNIST", "mnist"),
        ("Mnist", "mnist"),
        ("FashionMNIST", "fashion_mnist"),
        ("FashionMnist", "fashion_mnist"),
        ("FASHION_MNIST", "fashion_mnist"),
        ("Cifar10", "cifar10"),
        ("CIFAR10", "cifar10"),
        ("CIFAR100", "cifar100"),
        ("CIFAR10_1", "cifar10_1"),
        ("SVHN_Cropped", "svhn__cropped"),  # So does TFDS.
        ("SvhnCropped", "svhn_cropped"),
        ("Digits", "digits"),
        ("DIGITS", "digits"),
        ("Reverse", "reverse"),
        ("MNIST:3.0.1", "mnist:3.0.1"),
        ("EMNIST/byClass", "emnist/byClass"),
        ("Cifar10Corrupted/Fog_1:1.0.0", "cifar10_corrupted/Fog_1:1.0.0"),
        ("", ""),
        ("MNIST/", "MNIST/"),
        ("../MNIST", "../MNIST"),
        ("My Set", "My Set"),
        ("MNIST:latest", "MNIST:latest"),
    ],
)
def test_canonical_name(name, expected):
    assert data.canonical_name(name) == expected
    assert data.canonical_name(expected) == expected


def test_names_of_all_sets_and_their_classes_are_those_of_tfds():
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import naming, registered

    names = tfds.list_builders(with_community_datasets=False)
    assert len(names) > 200
    classes = [it.__name__ for it in registered._DATASET_REGISTRY.values()]
    assert "GTZAN" in classes and "FashionMNIST" in classes
    camel = [naming.snake_to_camelcase(name) for name in names]
    for name in (*names, *classes, *camel):
        expected, _ = naming.parse_builder_name_kwargs(name)
        assert data.canonical_name(name) == str(expected)


@pytest.mark.parametrize("name", ["Digits", "DIGITS", "Reverse"])
def test_sets_without_download_in_capitals(name):
    upper = data.load(name, "test")
    lower = data.load(name.lower(), "test")
    for ours, theirs in zip(upper.examples, lower.examples, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_prepared_set_in_capitals(tiny):
    upper, _ = data.load_splits("TINY:1.0.0", "train", "test", data_dir=str(tiny))
    lower = data.load("tiny", "train", data_dir=str(tiny))
    np.testing.assert_array_equal(upper.image_BHWC, lower.image_BHWC)


def test_error_quotes_the_name_as_it_was_written():
    message = message_of(lambda: data.load("../MNIST", "train"))
    assert "dataset '../MNIST' is not a name" in message
