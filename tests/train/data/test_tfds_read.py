"""Read prepared sets; errors for damaged and unsuitable ones."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.train.data import encodings
from tests.train.data.encodings import LOSSLESS_COLOUR, LOSSLESS_GREY
from tests.train.data.tiny_set import (
    NUM_TEST,
    NUM_TRAIN,
    colour_image,
    encode,
    encoded,
    message_of,
    write_set,
)
from train_jax import data
from train_jax.data import cache, tfds_read


def test_reads_a_prepared_set(tiny):
    split = data.load("tiny", "train", data_dir=str(tiny))
    images, labels = zip(*(colour_image(i) for i in range(NUM_TRAIN)), strict=True)
    np.testing.assert_array_equal(split.image_BHWC, np.stack(images))
    np.testing.assert_array_equal(split.label_B, labels)
    assert (split.image_BHWC.dtype, split.label_B.dtype) == (np.uint8, np.int32)
    assert split.num_classes == 3
    assert split.class_names == ("red", "green", "blue")


def test_slices_a_prepared_set(tiny):
    whole = data.load("tiny", "train", data_dir=str(tiny))
    part = data.load("tiny", "train[10%:-5%]", data_dir=str(tiny))
    np.testing.assert_array_equal(part.image_BHWC, whole.image_BHWC[4:-2])
    np.testing.assert_array_equal(part.label_B, whole.label_B[4:-2])


def test_data_dir_comes_from_the_environment(tiny, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tiny))
    assert len(data.load("tiny", "test").label_B) == NUM_TEST


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_grayscale_and_jpeg(tmp_path, suffix):
    image = np.tile(np.arange(0, 240, 8, dtype=np.uint8), (16, 1))[..., None]
    folder = tmp_path / "data" / "tiny" / "1.0.0"
    write_set(folder, {"train": [(encode(image, suffix), 0)] * 3}, channels=1)
    split = data.load("tiny", "train", data_dir=str(tmp_path / "data"))
    assert split.image_BHWC.shape == (3, 16, 30, 1)
    np.testing.assert_allclose(split.image_BHWC[1], image, atol=3)


def test_newest_version_or_the_one_asked_for(tmp_path):
    root = tmp_path / "data"
    for version, number in (("1.9.0", 5), ("1.10.0", 7)):
        write_set(root / "tiny" / version, {"train": encoded(number)})
    # What a killed preparation leaves behind is not taken for a prepared set.
    shutil.copytree(root / "tiny" / "1.9.0", root / "tiny" / "incomplete.X_2.0.0")
    assert len(data.load("tiny", "train", data_dir=str(root)).label_B) == 7
    assert len(data.load("tiny:1.9.0", "train", data_dir=str(root)).label_B) == 5


def test_config_given_or_default(tmp_path):
    root = tmp_path / "data"
    for config, number in (("small", 4), ("large", 8)):
        write_set(root / "tiny" / config / "1.0.0", {"train": encoded(number)})
    assert len(data.load("tiny/large", "train", data_dir=str(root)).label_B) == 8
    (root / "tiny" / ".config").mkdir()
    metadata = {"default_config_name": "small"}
    note = root / "tiny" / ".config" / "metadata.json"
    note.write_text(json.dumps(metadata), encoding="utf-8")
    assert len(data.load("tiny", "train", data_dir=str(root)).label_B) == 4


def test_unknown_split_of_a_prepared_set(tiny):
    message = message_of(lambda: data.load("tiny", "dev[:5]", data_dir=str(tiny)))
    assert "has no split 'dev'; it has: train, test" in message


def _edit(file: pathlib.Path, change: Callable[[Any], object]) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content), encoding="utf-8")


def test_a_set_without_splits(tiny):
    folder = tiny / "tiny" / "1.0.0"
    _edit(folder / "dataset_info.json", lambda info: info.pop("splits"))
    message = message_of(lambda: data.load("tiny", "train", data_dir=str(tiny)))
    assert "has no split 'train'; it has: none" in message


@pytest.mark.parametrize("lengths", [["0", "0"], ["0"], []])
def test_a_split_without_examples(tiny, lengths):
    folder = tiny / "tiny" / "1.0.0"
    _edit(
        folder / "dataset_info.json",
        lambda info: info["splits"][0].update(shardLengths=lengths),
    )
    for split in ("train", "train[:10%]", "train[:5]"):
        message = message_of(lambda s=split: data.load("tiny", s, data_dir=str(tiny)))
        assert "split 'train' of dataset 'tiny/1.0.0' has no examples" in message
        assert str(folder) in message
    assert len(data.load("tiny", "test", data_dir=str(tiny))) == NUM_TEST


def test_images_of_differing_sizes(tmp_path):
    pairs = [(encode(np.zeros((4, 4 + i, 3), np.uint8)), 0) for i in range(3)]
    write_set(tmp_path / "tiny" / "1.0.0", {"train": pairs})
    message = message_of(lambda: data.load("tiny", "train", data_dir=str(tmp_path)))
    assert "differing sizes, such as (4, 4, 3) and (4, 5, 3)" in message


def test_not_an_image_classification_set(tmp_path):
    folder = tmp_path / "tiny" / "1.0.0"
    write_set(folder, {"train": encoded(3)}, supervised=False)
    message = message_of(lambda: data.load("tiny", "train", data_dir=str(tmp_path)))
    assert "'tiny/1.0.0' is not an image-classification set" in message


def test_examples_without_labels(tmp_path):
    pairs = [(encoded, -1) for encoded, _ in encoded(3)]
    write_set(tmp_path / "tiny" / "1.0.0", {"train": pairs})
    message = message_of(lambda: data.load("tiny", "train", data_dir=str(tmp_path)))
    assert "expected 0 to 2, got -1 to -1" in message


def _truncate(folder: pathlib.Path) -> None:
    file = next(folder.glob("tiny-train*00001-of-*"))
    os.truncate(file, file.stat().st_size // 2)


def _truncate_info(folder: pathlib.Path) -> None:
    os.truncate(folder / "dataset_info.json", 40)


def _truncate_features(folder: pathlib.Path) -> None:
    os.truncate(folder / "features.json", 40)


def _remove_shard(folder: pathlib.Path) -> None:
    next(folder.glob("tiny-train*00001-of-*")).unlink()


def _swap_shard(folder: pathlib.Path) -> None:
    shutil.copy(
        next(folder.glob("tiny-test*00000-of-*")),
        next(folder.glob("tiny-train*00001-of-*")),
    )


def _remove_all_shards(folder: pathlib.Path) -> None:
    for file in folder.glob("tiny-train*"):
        file.unlink()


def _remove_features(folder: pathlib.Path) -> None:
    (folder / "features.json").unlink()


def _remove_classes(folder: pathlib.Path) -> None:
    def change(content):
        content["featuresDict"]["features"]["kind"]["classLabel"].pop("numClasses")

    _edit(folder / "features.json", change)


def _remove_a_name(folder: pathlib.Path) -> None:
    (folder / "kind.labels.txt").write_text("red\ngreen\n", encoding="utf-8")


def _repeat_a_name(folder: pathlib.Path) -> None:
    (folder / "kind.labels.txt").write_text("red\ngreen\nred\n", encoding="utf-8")


@pytest.mark.parametrize(
    "damage",
    [
        _truncate,
        _truncate_info,
        _truncate_features,
        _remove_shard,
        _swap_shard,
        _remove_all_shards,
        _remove_features,
        _remove_classes,
        _remove_a_name,
        _repeat_a_name,
    ],
)
def test_damaged_set(tiny, damage):
    folder = tiny / "tiny" / "1.0.0"
    damage(folder)
    message = message_of(lambda: data.load("tiny", "train", data_dir=str(tiny)))
    assert f"the prepared dataset in {folder} is damaged" in message


def test_supervised_keys_that_are_no_features(tiny):
    def change(info):
        info["supervisedKeys"]["tuple"]["items"][0]["featureKey"] = "photo"

    _edit(tiny / "tiny" / "1.0.0" / "dataset_info.json", change)
    message = message_of(lambda: data.load("tiny", "train", data_dir=str(tiny)))
    assert "is not an image-classification set" in message
    assert "which are ('photo', 'kind')" in message


def test_a_set_without_permission(tiny, monkeypatch):
    def refuse(*args):
        raise PermissionError("Permission denied")

    # As root, permissions would change nothing.
    for module, name in ((tfds_read, "_open"), (cache, "cache_path")):
        monkeypatch.setattr(module, name, refuse)
        message = message_of(lambda: data.load("tiny", "train", data_dir=str(tiny)))
        folder = tiny / "tiny" / "1.0.0"
        assert message == (
            f"the prepared dataset in {folder} can't be read: Permission denied"
        )


@pytest.mark.parametrize("content", [b"text", b""])
def test_bytes_that_are_no_image(tmp_path, content):
    folder = write_set(tmp_path / "tiny" / "1.0.0", {"train": [(content, 0)] * 3})
    message = message_of(lambda: data.load("tiny", "train", data_dir=str(tmp_path)))
    assert f"the prepared dataset in {folder} is damaged" in message
    assert "neither PNG nor JPEG" in message


@pytest.mark.parametrize(
    ("file_format", "expected"),
    [
        ("tfrecord", 'reading it needs TensorFlow: pip install "vit-resnet-jax[prep'),
        ("parquet", "prepared as 'parquet'; allowed: 'array_record' or 'tfrecord'"),
    ],
)
@pytest.mark.usefixtures("no_tensorflow")
def test_other_file_formats(tmp_path, file_format, expected):
    folder = tmp_path / "tiny" / "1.0.0"
    write_set(folder, {"train": encoded(3)}, file_format=file_format)
    message = message_of(lambda: data.load("tiny", "train", data_dir=str(tmp_path)))
    assert expected in message


@pytest.mark.slow  # The import of TensorFlow takes ten seconds.
def test_starting_tensorflow_prints_nothing():
    pytest.importorskip("tensorflow")
    program = "from train_jax.data import tfds_read; tfds_read.import_tensorflow('x')"
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert result.stdout + result.stderr == ""


@pytest.mark.slow  # The import of TensorFlow takes ten seconds.
def test_images_are_decoded_as_tensorflow_does():
    tf = pytest.importorskip("tensorflow")
    with_tag = encodings.png_chunk(b"eXIf", encodings.exif(6).tobytes()[6:])
    alpha = np.arange(encodings.GREY.size).reshape(encodings.GREY.shape[:2]) % 256
    random = np.random.default_rng(0).integers(0, 65536, (6, 7, 4)).astype(np.uint16)
    images = {
        **{name: it for name, it in LOSSLESS_COLOUR.items() if name.startswith("png")},
        **{f"grey {n}": it for n, it in LOSSLESS_GREY.items() if n.startswith("png")},
        "turned": encodings.png(encodings.COLOUR, 2, chunks=with_tag),
        "alpha": encodings.png(encodings.with_alpha(encodings.COLOUR, alpha), 6),
        "grey 16": encodings.png(random[..., :1], 0),
        "rgb 16": encodings.png(random[..., :3], 2),
        "rgba 16": encodings.png(random, 6),
    }
    for name, content in images.items():
        for channels in (1, 3):
            theirs = tf.image.decode_image(content, channels=channels).numpy()
            ours = tfds_read.decode_image(content, channels)
            np.testing.assert_array_equal(ours, theirs, err_msg=name)
    # TensorFlow's own JPEG decoder is the faster, coarser one.
    for exif in (b"", encodings.exif(6)):
        jpeg = encodings.pillow(encodings.COLOUR, "JPEG", quality=95, exif=exif)
        theirs = tf.image.decode_image(jpeg, channels=3).numpy().astype(int)
        np.testing.assert_allclose(tfds_read.decode_image(jpeg, 3), theirs, atol=8)
