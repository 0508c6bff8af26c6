"""Find and read sets that TFDS has prepared, without TensorFlow."""

import contextlib
import json
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from train_jax.data.names import parse_name
from train_jax.data.quiet import quiet
from train_jax.data.split import ImageSplit, check_split_name

_VERSION = re.compile(r"\d+\.\d+\.\d+")

# Large enough to amortise a call, small enough not to hold a big set twice.
_RECORDS_PER_READ = 4096


def find_prepared(name: str, root: pathlib.Path) -> pathlib.Path | None:
    """Find the newest prepared version of a dataset, or the one named; None if missing.

    Does without TFDS, whose import takes seconds.

    Raises:
        ValueError: if `name` is not a name, or the file system can't hold it.
    """
    dataset, config, wanted = parse_name(name)
    folder = root / dataset
    try:
        config = config or _default_config(folder)
        found = _prepared_versions(folder / config if config else folder)
    except OSError as error:
        raise ValueError(
            f"cannot look for dataset {name!r} in {root}: {error.strerror or error}"
        ) from error
    return next((it for it in reversed(found) if wanted in (None, it.name)), None)


def list_prepared(dataset: str, root: pathlib.Path) -> str:
    """List prepared configs and versions: `"; prepared in data: tiny/large:1.0.0"`.

    Returns:
        The list, to be appended to an error; empty if there are none.
    """
    folders = (root / dataset, *sorted((root / dataset).glob("*/")))
    found = [path for folder in folders for path in _prepared_versions(folder)]
    names = [f"{it.parent.relative_to(root).as_posix()}:{it.name}" for it in found]
    return f"; prepared in {root}: {', '.join(names)}" if names else ""


def _prepared_versions(folder: pathlib.Path) -> list[pathlib.Path]:
    """List the prepared versions of a dataset or of a config, the newest last."""
    found = [path.parent for path in folder.glob("*/dataset_info.json")]
    found = [path for path in found if _VERSION.fullmatch(path.name)]
    return sorted(found, key=lambda path: [int(it) for it in path.name.split(".")])


def _default_config(folder: pathlib.Path) -> str | None:
    """Read the name of the default config, if the dataset has configs."""
    try:
        file = folder / ".config" / "metadata.json"
        metadata = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return metadata.get("default_config_name")


def _open(folder: pathlib.Path) -> Any:
    """Open a prepared set.

    Raises:
        OSError: if its metadata are damaged.
    """
    import tensorflow_datasets as tfds

    try:
        return tfds.builder_from_directory(folder)
    except (ValueError, TypeError, KeyError) as error:
        raise OSError(f"its metadata are not readable: {error}") from error


def read_prepared(folder: pathlib.Path, base: str) -> ImageSplit:
    """Read and decode a whole split of a prepared set.

    Raises:
        ValueError: if it is missing, damaged or not an image-classification set.
    """
    with naming_damage(folder):
        return _decode_split(open_split(folder, base), base)


def open_split(folder: pathlib.Path, base: str) -> Any:
    """Open a prepared set, and make sure that it has a split."""
    builder = _open(folder)
    check_split_name(base, builder.info.splits, builder.info.full_name)
    return builder


def example_class() -> Any:
    """Import the message that a record holds.

    TFDS's own deserialiser takes several times as long as reading its fields.
    """
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example  # type: ignore


@contextlib.contextmanager
def naming_damage(folder: pathlib.Path) -> Iterator[None]:
    """Turn what a damaged or unreadable set raises into a ValueError that names it."""
    from google.protobuf import json_format, message

    try:
        yield
    except PermissionError as error:
        raise ValueError(
            f"the prepared dataset in {folder} can't be read: {error}"
        ) from error
    except (
        RuntimeError,  # What array_record raises for a shard that it can't read.
        IndexError,  # For a record that it can't read it may return an empty one.
        OSError,
        json.JSONDecodeError,
        json_format.Error,
        message.DecodeError,
    ) as error:
        raise ValueError(
            f"the prepared dataset in {folder} is damaged; delete that folder and "
            f"prepare or copy it again ({one_line(error)})"
        ) from error


def one_line(error: Exception) -> str:
    """Format an error in one line; its type if it has no message."""
    return " ".join(str(error).split()) or type(error).__name__


def image_and_label_keys(info: Any) -> tuple[str, str]:
    """Get the names of the features that are the image and the label.

    Raises:
        ValueError: if it is not an image-classification set.
    """
    import tensorflow_datasets as tfds

    keys = info.supervised_keys
    if keys and len(keys) == 2 and all(key in [*info.features] for key in keys):
        image, label = (info.features[key] for key in keys)
        if (
            isinstance(image, tfds.features.Image)
            and image.np_dtype == np.uint8
            and image.shape[-1] in (1, 3)  # type: ignore
            and isinstance(label, tfds.features.ClassLabel)
        ):
            return keys
    raise ValueError(
        f"dataset {info.full_name!r} is not an image-classification set: expected a "
        "uint8 Image with 1 or 3 channels and a ClassLabel as its supervised keys, "
        f"which are {keys}"
    )


def _decode_split(builder: Any, base: str) -> ImageSplit:
    """Decode the images of a split into one array."""
    info = builder.info
    num_examples = info.splits[base].num_examples
    if not num_examples:
        raise ValueError(
            f"split {base!r} of dataset {info.full_name!r} has no examples, says "
            f"{builder.data_dir}"
        )
    keys = image_and_label_keys(info)
    image_feature, label_feature = (info.features[key] for key in keys)
    num_classes, names = label_feature.num_classes, tuple(label_feature.names)
    if len(set(names)) != num_classes or not num_classes:
        raise RuntimeError(f"{num_classes} classes with {len(set(names))} names")
    image_BHWC = np.empty((0,), np.uint8)
    label_B = np.full(num_examples, -1, np.int32)
    count = 0
    for encoded, label in _examples(builder, base, keys):
        image_HWC = decode_image(encoded, image_feature.shape[-1])
        if count == 0:
            image_BHWC = np.empty((num_examples, *image_HWC.shape), np.uint8)
        if image_HWC.shape != image_BHWC.shape[1:]:
            raise ValueError(
                f"dataset {info.full_name!r} has images of differing sizes, such as "
                f"{image_BHWC.shape[1:]} and {image_HWC.shape}; expected one size, or "
                "config.dataset.streaming=True and config.dataset.image_size"
            )
        image_BHWC[count], label_B[count] = image_HWC, label
        count += 1
    if count != num_examples:
        raise RuntimeError(f"{count} of {num_examples} examples found")
    if np.any((label_B < 0) | (label_B >= num_classes)):
        raise ValueError(
            f"split {base!r} of dataset {info.full_name!r} has examples without a "
            f"label: expected 0 to {num_classes - 1}, got {label_B.min()} to "
            f"{label_B.max()}"
        )
    return ImageSplit(image_BHWC, label_B, names)


def decode_image(encoded: bytes, channels: int) -> np.ndarray:
    """Decode a PNG or JPEG image to uint8 HWC; three channels are RGB."""
    import cv2

    # TFDS ignores the EXIF orientation, too.
    colour = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB
    flags = colour | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = np.frombuffer(encoded, np.uint8)
    image = cv2.imdecode(pixels, flags) if encoded else None
    if image is None:
        raise RuntimeError("an image is neither PNG nor JPEG")
    return image.reshape(*image.shape[:2], channels)


def _examples(
    builder: Any, base: str, keys: tuple[str, str]
) -> Iterator[tuple[bytes, int]]:
    """Read the encoded images and their labels, in the order of the files."""
    file_format = builder.info.file_format.value
    if file_format == "array_record":
        return _array_record_examples(builder, base, keys)
    if file_format == "tfrecord":
        return _tfrecord_examples(builder, base, keys)
    raise ValueError(
        f"the dataset in {builder.data_dir} is prepared as {file_format!r}; "
        "allowed: 'array_record' or 'tfrecord'"
    )


def _array_record_examples(
    builder: Any, base: str, keys: tuple[str, str]
) -> Iterator[tuple[bytes, int]]:
    from tensorflow_datasets.core import decode

    message_class = example_class()
    raw = decode.DeserializeMethod.RAW_BYTES
    source = builder.as_data_source(base, deserialize_method=raw)
    for start in range(0, len(source), _RECORDS_PER_READ):
        stop = min(start + _RECORDS_PER_READ, len(source))
        for record in source.__getitems__(range(start, stop)):
            feature = message_class.FromString(record).features.feature
            image, label = (feature[key] for key in keys)
            yield image.bytes_list.value[0], label.int64_list.value[0]


def _tfrecord_examples(
    builder: Any, base: str, keys: tuple[str, str]
) -> Iterator[tuple[bytes, int]]:
    import tensorflow_datasets as tfds

    tf = import_tensorflow(
        f"the dataset in {builder.data_dir} is prepared as 'tfrecord' (prepare it as "
        "'array_record' to do without TensorFlow); reading it"
    )
    image_key, label_key = keys
    decoders = tfds.decode.PartialDecoding(
        {image_key: True, label_key: True},
        decoders={image_key: tfds.decode.SkipDecoding()},
    )
    # One shard after the other: the order in which array_record is read, too.
    read_config = tfds.ReadConfig(interleave_cycle_length=1)
    dataset = builder.as_dataset(split=base, decoders=decoders, read_config=read_config)
    try:
        for example in dataset.as_numpy_iterator():
            yield example[image_key], int(example[label_key])
    except tf.errors.OpError as error:
        raise RuntimeError(error.message) from error


def import_tensorflow(purpose: str) -> Any:
    """Import TensorFlow, and keep it from taking the accelerators' memory.

    Raises:
        ValueError: if it is not installed; starts with `purpose`.
    """
    # Read at the first import: its C++ part prints errors only.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        with quiet():
            import tensorflow as tf  # type: ignore
    except ImportError as error:
        raise ValueError(
            f'{purpose} needs TensorFlow: pip install "vit-resnet-jax[prepare]"'
        ) from error
    with contextlib.suppress(RuntimeError):  # Raised if somebody else uses it already.
        tf.config.set_visible_devices([], "GPU")
    return tf
