"""A tiny prepared TFDS set, written without TensorFlow."""

import json
import pathlib
from collections.abc import Callable

import numpy as np
import pytest

NUM_TRAIN, NUM_TEST = 37, 12
COLOURS = (("red", (200, 30, 10)), ("green", (20, 210, 30)), ("blue", (5, 25, 220)))


def encode(image_HWC: np.ndarray, suffix: str = ".png") -> bytes:
    import cv2

    bgr = image_HWC[..., ::-1] if image_HWC.shape[-1] == 3 else image_HWC
    return cv2.imencode(suffix, np.ascontiguousarray(bgr))[1].tobytes()


def colour_image(i: int) -> tuple[np.ndarray, int]:
    label = i % len(COLOURS)
    image = np.full((6, 5, 3), COLOURS[label][1], np.uint8)
    image[0, 0] = i
    return image, label


def features(channels: int) -> dict:
    """The content of features.json: a picture of any size and its kind."""
    core = "tensorflow_datasets.core.features"
    image = {
        "image": {
            "dtype": "uint8",
            "shape": {"dimensions": ["-1", "-1", str(channels)]},
        },
        "pythonClassName": f"{core}.image_feature.Image",
    }
    kind = {
        "classLabel": {"numClasses": str(len(COLOURS))},
        "pythonClassName": f"{core}.class_label_feature.ClassLabel",
    }
    return {
        "featuresDict": {"features": {"picture": image, "kind": kind}},
        "pythonClassName": f"{core}.features_dict.FeaturesDict",
    }


def write_set(
    folder: pathlib.Path,
    examples: dict[str, list[tuple[bytes, int]]],
    *,
    channels: int = 3,
    supervised: bool = True,
    file_format: str = "array_record",
) -> pathlib.Path:
    """Write a tiny prepared TFDS set, two shards a split, without TensorFlow."""
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    folder.mkdir(parents=True)
    splits = []
    for split, pairs in examples.items():
        cut = len(pairs) // 3
        for shard, part in enumerate((pairs[:cut], pairs[cut:])):
            file = folder / f"tiny-{split}.{file_format}-0000{shard}-of-00002"
            writer = ArrayRecordWriter(str(file), "group_size:1")
            for encoded, label in part:
                example = tf_example_pb2.Example()
                example.features.feature["picture"].bytes_list.value.append(encoded)
                example.features.feature["kind"].int64_list.value.append(label)
                writer.write(example.SerializeToString())
            writer.close()
        lengths = [str(cut), str(len(pairs) - cut)]
        splits.append({"name": split, "numBytes": "1", "shardLengths": lengths})
    keys = {"tuple": {"items": [{"featureKey": "picture"}, {"featureKey": "kind"}]}}
    info = {"name": "tiny", "version": "1.0.0", "fileFormat": file_format}
    info |= {"splits": splits} | ({"supervisedKeys": keys} if supervised else {})
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    (folder / "features.json").write_text(
        json.dumps(features(channels)), encoding="utf-8"
    )
    names = "\n".join(name for name, _ in COLOURS)
    (folder / "kind.labels.txt").write_text(names + "\n", encoding="utf-8")
    return folder


def encoded(number: int) -> list[tuple[bytes, int]]:
    pairs = [colour_image(i) for i in range(number)]
    return [(encode(image), label) for image, label in pairs]


def message_of(call: Callable[[], object], *, max_lines: int = 1) -> str:
    """The message of the ValueError that `call` has to raise."""
    with pytest.raises(ValueError) as caught:
        call()
    message = str(caught.value)
    assert len(message.splitlines()) <= max_lines, message
    return message
