"""Sets that TFDS has prepared, read when they are asked for."""

import numpy as np
import pytest

from tests.train.data.tiny_set import encoded, write_set
from train_jax import data


def test_a_prepared_set_is_streamed_in_the_order_of_its_files(tiny):
    expected = data.load_splits("tiny", "train", data_dir=str(tiny))[0]
    (streamed,) = data.load_splits("tiny", "train", data_dir=str(tiny), room=0)
    assert streamed.is_streamed and streamed.class_names == expected.class_names
    np.testing.assert_array_equal(streamed.image_BHWC, expected.image_BHWC)
    np.testing.assert_array_equal(streamed.label_B, expected.label_B)
    part = streamed[3:7]
    np.testing.assert_array_equal(part.image_BHWC[2], expected.image_BHWC[5])
    np.testing.assert_array_equal(part.label_B[[0, 3]], expected.label_B[[3, 6]])


def test_a_label_is_known_once_its_image_has_been_read(tiny, monkeypatch):
    (split,) = data.load_splits("tiny", "train", data_dir=str(tiny), room=0)
    source = split.image_BHWC.source
    source.read_image(4)
    expected = source.read_label(5), source.read_label(4)
    monkeypatch.setattr(source, "_features", None)
    assert (source.read_label(5), source.read_label(4)) == expected == (2, 1)


def test_examples_without_a_label_are_refused(tmp_path):
    examples = encoded(4)
    examples[2] = (examples[2][0], -1)
    write_set(tmp_path / "tiny" / "1.0.0", {"test": examples})
    (split,) = data.load_splits("tiny", "test", data_dir=str(tmp_path), room=0)
    assert list(split.label_B[:2]) == [0, 1]
    with pytest.raises(ValueError, match="without a label: expected 0 to 2, got -1 to"):
        split.label_B[np.arange(4)]


@pytest.mark.tfds
def test_the_room_is_that_of_the_resized_images():
    room = 2 * 10_000 * 28 * 28
    (split,) = data.load_splits("mnist", "test", image_size=56, room=room)
    assert split.is_streamed and split.image_BHWC.shape[1:] == (56, 56, 1)
    (split,) = data.load_splits("mnist", "test", image_size=28, room=room)
    assert not split.is_streamed
    # Of smaller ones, too, all are decoded first.
    (split,) = data.load_splits("mnist", "test", image_size=14, room=room / 2)
    assert split.is_streamed
