"""Load the digits; parse the syntax of splits."""

import socket

import numpy as np
import pytest

from tests.train.data.tiny_set import message_of
from train_jax import data
from train_jax.data.split import absolute_slice, split_name


def test_digits_sizes_and_values():
    train, test = data.load("digits", "train"), data.load("digits", "test")
    assert train.image_BHWC.shape == (1437, 8, 8, 1)
    assert test.image_BHWC.shape == (360, 8, 8, 1)
    for part in (train, test):
        assert part.image_BHWC.dtype == np.uint8
        assert part.label_B.dtype == np.int32
        assert part.num_classes == 10
        assert part.class_names == tuple("0123456789")
    levels = set(np.unique(train.image_BHWC))
    assert levels == {round(255 / 16 * value) for value in range(17)}


def test_digits_is_a_stratified_partition():
    from sklearn.datasets import load_digits

    train, test = data.load("digits", "train"), data.load("digits", "test")
    share_Y = np.bincount(test.label_B) / np.bincount(
        np.concatenate([train.label_B, test.label_B])
    )
    np.testing.assert_allclose(share_Y, 360 / 1797, atol=0.003)

    pixels_BD, label_B = load_digits(return_X_y=True)
    expected = sorted(zip(pixels_BD.tolist(), label_B.tolist(), strict=True))
    ours_BD = np.concatenate([train.image_BHWC, test.image_BHWC]).reshape(-1, 64)
    ours_BD = np.rint(ours_BD * (16 / 255)).tolist()
    labels = np.concatenate([train.label_B, test.label_B]).tolist()
    assert sorted(zip(ours_BD, labels, strict=True)) == expected


def test_digits_is_deterministic_and_needs_no_network(monkeypatch):
    def refuse(*args):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    first, second = data.load("digits", "train"), data.load("digits", "train")
    np.testing.assert_array_equal(first.image_BHWC, second.image_BHWC)
    np.testing.assert_array_equal(first.label_B, second.label_B)
    # The order is part of what a seed reproduces: it must not change unnoticed.
    assert first.label_B[:8].tolist() == [3, 9, 1, 3, 1, 9, 4, 4]


def test_digits_slices():
    whole = data.load("digits", "train")
    head, tail = data.load("digits", "train[:90%]"), data.load("digits", "train[90%:]")
    assert (len(head.label_B), len(tail.label_B)) == (1293, 144)
    joined = np.concatenate([head.image_BHWC, tail.image_BHWC])
    np.testing.assert_array_equal(joined, whole.image_BHWC)


SPECS = (
    "train",
    "train[:90%]",
    "train[90%:]",
    "train[10%:20%]",
    "train[33%:67%]",
    "train[12.5%:37.5%]",
    "train[:50%]",
    "train[-10%:]",
    "train[:-15%]",
    "train[5:]",
    "train[:7]",
    "train[3:9]",
    "train[-4:-1]",
    "train[1_0:]",
    "train[0:]",
)


@pytest.mark.parametrize("size", [11, 37, 1437, 60_000])
@pytest.mark.parametrize("spec", SPECS)
def test_slices_are_those_of_tfds(spec, size):
    import tensorflow_datasets as tfds

    info = tfds.core.SplitInfo(name="train", shard_lengths=[size], num_bytes=0)
    (expected,) = tfds.core.ReadInstruction.from_spec(spec).to_absolute({"train": info})
    assert split_name(spec) == expected.splitname
    cut = absolute_slice(spec, size)
    assert range(size)[cut] == range(size)[expected.from_ : expected.to]


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("", "not understood"),
        ("train[", "not understood"),
        ("train[:]", "not understood"),
        ("train[5]", "not understood"),
        ("train[a:]", "not understood"),
        ("train[1.5:]", "not understood"),
        ("train[::2]", "not understood"),
        ("train+test", "not understood"),
        ("train[1shard:]", "not understood"),
        ("train[10:20%]", "mixes percent and absolute"),
        ("train[20%:10%]", "empty"),
        ("train[:0]", "empty"),
        ("train[100%:]", "empty"),
        ("train[:2000]", "beyond the 1437 examples"),
        ("train[:101%]", "beyond the 1437 examples"),
        ("validation", "has no split 'validation'; it has: train, test"),
    ],
)
def test_bad_splits(spec, reason):
    message = message_of(lambda: data.load("digits", spec))
    assert reason in message
    assert repr(spec) in message


@pytest.mark.parametrize(
    ("split_a", "split_b", "expected"),
    [
        ("train", "train", 1437),
        ("train", "train[:10%]", 144),
        ("train[:50%]", "train[50%:]", 0),
        ("train[:90%]", "train[90%:]", 0),
        ("train[:60%]", "train[40%:]", 287),
        ("train[:100]", "train[90:110]", 10),
        ("train[-5:]", "train[1430:]", 5),
        ("train[10:20]", "train[5:50]", 10),
        ("train[:10]", "train[20:30]", 0),
        ("train", "test", 0),
        ("train[:100]", "test[:100]", 0),
    ],
)
def test_count_of_shared_examples(split_a, split_b, expected):
    a, b, train, test = data.load_splits("digits", split_a, split_b, "train", "test")
    sizes = {"train": len(train), "test": len(test)}
    assert data.count_shared(split_a, split_b, sizes) == expected
    assert data.count_shared(split_b, split_a, sizes) == expected
    if expected:
        where_a, where_b = (
            set(range(x.label_B.ctypes.data, x.label_B.ctypes.data + x.label_B.nbytes))
            for x in (a, b)
        )
        assert len(where_a & where_b) == expected * a.label_B.itemsize


def test_changing_the_digits_changes_no_later_ones():
    first = data.load("digits", "train")
    expected = first.image_BHWC.copy()
    first.image_BHWC[:] = 0
    np.testing.assert_array_equal(data.load("digits", "train").image_BHWC, expected)
