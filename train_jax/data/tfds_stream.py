"""Stream sets that TFDS has prepared in array_record files."""

import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from train_jax.data.resize import Resize
from train_jax.data.split import ImageSplit
from train_jax.data.streamed import stream_split
from train_jax.data.tfds_read import (
    decode_image,
    example_class,
    image_and_label_keys,
    naming_damage,
    open_split,
)


def stream_prepared(
    folder: pathlib.Path, base: str, *, image_size: int | None, resize: Resize
) -> ImageSplit:
    """Open a split of a prepared set, to be read and decoded when it is asked for.

    Args:
        folder: of the prepared set, in array_record files.
        base: name of the split.
        image_size: see `load_splits`.
        resize: likewise.

    Raises:
        ValueError: see `read_prepared`.
    """
    with naming_damage(folder):
        builder = open_split(folder, base)
        info = builder.info
        keys = image_and_label_keys(info)
        if info.file_format.value != "array_record":
            raise ValueError(
                "config.dataset.streaming needs a set prepared as 'array_record', "
                f"{folder} is {info.file_format.value!r}"
            )
        channels = info.features[keys[0]].shape[-1]
        records = Records(folder, info.splits[base].filepaths, keys, channels)
        return stream_split(
            records,
            info.splits[base].num_examples,
            channels=channels,
            image_size=image_size,
            class_names=info.features[keys[1]].names,
            resize=resize,
        )


def decoded_size(folder: pathlib.Path, base: str, image_size: int | None) -> float:
    """Count the bytes that a split takes in memory; infinity for images of many sizes.

    Args:
        folder: of the prepared set.
        base: name of the split.
        image_size: side to which images are brought, pixels; None to leave them. All
            are decoded, then all are resized.

    Raises:
        ValueError: see `read_prepared`.
    """
    with naming_damage(folder):
        info = open_split(folder, base).info
        image_key, _ = image_and_label_keys(info)
        shape = info.features[image_key].shape
        if None in shape:
            return math.inf
        num_values = math.prod(shape)
        if image_size is not None and shape[:2] != (image_size, image_size):
            num_values += image_size**2 * shape[-1]
        return float(info.splits[base].num_examples * num_values)


_UNREAD = np.iinfo(np.int64).min


class Records:
    """The records of a split in array_record files, see `Source`."""

    def __init__(
        self,
        folder: pathlib.Path,
        files: Sequence[Any],
        keys: tuple[str, str],
        channels: int,
    ):
        from array_record.python import array_record_data_source

        self._folder = folder
        self._records = array_record_data_source.ArrayRecordDataSource(
            [os.fspath(file) for file in files]
        )
        self._keys = keys
        self._channels = channels
        self._label_M = np.full(len(self._records), _UNREAD, np.int64)

    def read_image(self, place: int) -> np.ndarray:
        """Read and decode an image."""
        with naming_damage(self._folder):
            image, label = self._features(place)
            self._label_M[place] = label.int64_list.value[0]
            return decode_image(image.bytes_list.value[0], self._channels)

    def read_label(self, place: int) -> int:
        """Read a label, which is known if the image has been read."""
        if self._label_M[place] == _UNREAD:
            with naming_damage(self._folder):
                _, label = self._features(place)
                self._label_M[place] = label.int64_list.value[0]
        return int(self._label_M[place])

    def _features(self, place: int) -> tuple[Any, Any]:
        record = self._records[place]
        feature = example_class().FromString(record).features.feature
        image, label = (feature[key] for key in self._keys)
        return image, label
