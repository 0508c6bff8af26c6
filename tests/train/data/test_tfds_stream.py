"""Sets that TFDS has prepared, read when they are asked for."""

import numpy as np

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
