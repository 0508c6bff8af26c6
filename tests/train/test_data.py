"""Datasets: digits, TFDS sets prepared or not, the cache, and every error message."""

import builtins
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

from train_jax import data

needs_tfds_dir = pytest.mark.skipif(
    "TFDS_DATA_DIR" not in os.environ, reason="TFDS_DATA_DIR is not set"
)
needs_archives = pytest.mark.skipif(
    "MNIST_ARCHIVES" not in os.environ, reason="MNIST_ARCHIVES is not set"
)
NUM_TRAIN, NUM_TEST = 37, 12
COLOURS = (("red", (200, 30, 10)), ("green", (20, 210, 30)), ("blue", (5, 25, 220)))


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch):
    """Keep every test away from the user's own cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vit-resnet-jax"


def _png(image_HWC: np.ndarray, suffix: str = ".png") -> bytes:
    import cv2

    bgr = image_HWC[..., ::-1] if image_HWC.shape[-1] == 3 else image_HWC
    return cv2.imencode(suffix, np.ascontiguousarray(bgr))[1].tobytes()


def _colour_image(i: int) -> tuple[np.ndarray, int]:
    label = i % len(COLOURS)
    image = np.full((6, 5, 3), COLOURS[label][1], np.uint8)
    image[0, 0] = i
    return image, label


def _write_set(
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
    (folder / "dataset_info.json").write_text(json.dumps(info))
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
    features = {
        "featuresDict": {"features": {"picture": image, "kind": kind}},
        "pythonClassName": f"{core}.features_dict.FeaturesDict",
    }
    (folder / "features.json").write_text(json.dumps(features))
    names = "\n".join(name for name, _ in COLOURS)
    (folder / "kind.labels.txt").write_text(names + "\n")
    return folder


def _encoded(number: int) -> list[tuple[bytes, int]]:
    pairs = [_colour_image(i) for i in range(number)]
    return [(_png(image), label) for image, label in pairs]


@pytest.fixture
def tiny(tmp_path) -> pathlib.Path:
    """A data_dir with the prepared set tiny/1.0.0."""
    examples = {"train": _encoded(NUM_TRAIN), "test": _encoded(NUM_TEST)}
    _write_set(tmp_path / "data" / "tiny" / "1.0.0", examples)
    return tmp_path / "data"


@pytest.fixture
def no_tensorflow(monkeypatch):
    """Let data.py, and nobody else, find that TensorFlow is not installed."""
    real_import = builtins.__import__

    def fake_import(name, globals=None, *args, **kwargs):
        if name == "tensorflow" and (globals or {}).get("__name__") == data.__name__:
            raise ImportError(name)
        return real_import(name, globals, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", fake_import)


def _message(call: Callable[[], object], *, max_lines: int = 1) -> str:
    """The message of the ValueError that `call` has to raise."""
    with pytest.raises(ValueError) as caught:
        call()
    message = str(caught.value)
    assert len(message.splitlines()) <= max_lines, message
    return message


# digits


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


# split syntax

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
    base, start, stop = data._parse_split(spec)
    assert base == expected.splitname
    cut = data._absolute_slice(spec, start, stop, size)
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
    message = _message(lambda: data.load("digits", spec))
    assert reason in message
    assert repr(spec) in message


# prepared sets


def test_reads_a_prepared_set(tiny):
    split = data.load("tiny", "train", data_dir=str(tiny))
    images, labels = zip(*(_colour_image(i) for i in range(NUM_TRAIN)), strict=True)
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
    _write_set(folder, {"train": [(_png(image, suffix), 0)] * 3}, channels=1)
    split = data.load("tiny", "train", data_dir=str(tmp_path / "data"))
    assert split.image_BHWC.shape == (3, 16, 30, 1)
    np.testing.assert_allclose(split.image_BHWC[1], image, atol=3)


def test_newest_version_or_the_one_asked_for(tmp_path):
    root = tmp_path / "data"
    for version, number in (("1.9.0", 5), ("1.10.0", 7)):
        _write_set(root / "tiny" / version, {"train": _encoded(number)})
    # What a killed preparation leaves behind is not taken for a prepared set.
    shutil.copytree(root / "tiny" / "1.9.0", root / "tiny" / "incomplete.X_2.0.0")
    assert len(data.load("tiny", "train", data_dir=str(root)).label_B) == 7
    assert len(data.load("tiny:1.9.0", "train", data_dir=str(root)).label_B) == 5


def test_config_given_or_default(tmp_path):
    root = tmp_path / "data"
    for config, number in (("small", 4), ("large", 8)):
        _write_set(root / "tiny" / config / "1.0.0", {"train": _encoded(number)})
    assert len(data.load("tiny/large", "train", data_dir=str(root)).label_B) == 8
    (root / "tiny" / ".config").mkdir()
    metadata = {"default_config_name": "small"}
    (root / "tiny" / ".config" / "metadata.json").write_text(json.dumps(metadata))
    assert len(data.load("tiny", "train", data_dir=str(root)).label_B) == 4


def test_unknown_split_of_a_prepared_set(tiny):
    message = _message(lambda: data.load("tiny", "dev[:5]", data_dir=str(tiny)))
    assert "has no split 'dev'; it has: train, test" in message


def test_images_of_differing_sizes(tmp_path):
    pairs = [(_png(np.zeros((4, 4 + i, 3), np.uint8)), 0) for i in range(3)]
    _write_set(tmp_path / "tiny" / "1.0.0", {"train": pairs})
    message = _message(lambda: data.load("tiny", "train", data_dir=str(tmp_path)))
    assert "differing sizes, such as (4, 4, 3) and (4, 5, 3)" in message


def test_not_an_image_classification_set(tmp_path):
    folder = tmp_path / "tiny" / "1.0.0"
    _write_set(folder, {"train": _encoded(3)}, supervised=False)
    message = _message(lambda: data.load("tiny", "train", data_dir=str(tmp_path)))
    assert "'tiny/1.0.0' is not an image-classification set" in message


def test_examples_without_labels(tmp_path):
    pairs = [(encoded, -1) for encoded, _ in _encoded(3)]
    _write_set(tmp_path / "tiny" / "1.0.0", {"train": pairs})
    message = _message(lambda: data.load("tiny", "train", data_dir=str(tmp_path)))
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


@pytest.mark.parametrize(
    "damage",
    [_truncate, _truncate_info, _truncate_features, _remove_shard, _swap_shard],
)
def test_damaged_set(tiny, damage):
    folder = tiny / "tiny" / "1.0.0"
    damage(folder)
    message = _message(lambda: data.load("tiny", "train", data_dir=str(tiny)))
    assert f"the prepared dataset in {folder} is damaged" in message


def test_bytes_that_are_no_image(tmp_path):
    folder = _write_set(tmp_path / "tiny" / "1.0.0", {"train": [(b"text", 0)] * 3})
    message = _message(lambda: data.load("tiny", "train", data_dir=str(tmp_path)))
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
    _write_set(folder, {"train": _encoded(3)}, file_format=file_format)
    message = _message(lambda: data.load("tiny", "train", data_dir=str(tmp_path)))
    assert expected in message


# cache


def _forbid_reading(monkeypatch) -> None:
    def refuse(*args):
        raise AssertionError("the prepared files were read")

    monkeypatch.setattr(data, "_read_prepared", refuse)


def test_second_start_imports_no_tfds(tiny, cache_dir):
    first = data.load("tiny", "train[5:]", data_dir=str(tiny))
    assert len(list(cache_dir.iterdir())) == 1
    program = f"""
import sys
from train_jax import data
split = data.load("tiny", "train[5:]", data_dir={str(tiny)!r})
heavy = ("tensorflow_datasets", "tensorflow", "sklearn", "cv2", "jax")
print(split.image_BHWC.sum(), split.label_B.sum(), split.class_names)
print([name for name in heavy if name in sys.modules])
"""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    sums = f"{first.image_BHWC.sum()} {first.label_B.sum()} {first.class_names}"
    assert result.stdout.splitlines() == [sums, "[]"]
    assert result.stderr == ""


def test_cache_serves_every_slice(tiny, monkeypatch):
    whole = data.load("tiny", "train", data_dir=str(tiny))
    _forbid_reading(monkeypatch)
    part = data.load("tiny", "train[-3:]", data_dir=str(tiny))
    np.testing.assert_array_equal(part.image_BHWC, whole.image_BHWC[-3:])
    assert (part.num_classes, part.class_names) == (3, whole.class_names)


def test_cache_follows_the_files(tiny, monkeypatch):
    data.load("tiny", "test", data_dir=str(tiny))
    shard = next((tiny / "tiny" / "1.0.0").glob("tiny-test*"))
    os.utime(shard, ns=(1, 1))
    _forbid_reading(monkeypatch)
    with pytest.raises(AssertionError, match="prepared files were read"):
        data.load("tiny", "test", data_dir=str(tiny))


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_corrupt_cache_is_rebuilt(tiny, cache_dir, caplog, monkeypatch, content):
    before = data.load("tiny", "train", data_dir=str(tiny))
    (file,) = cache_dir.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if content is None else content)
    after = data.load("tiny", "train", data_dir=str(tiny))
    assert "rebuilding the unreadable cache" in caplog.text
    np.testing.assert_array_equal(before.image_BHWC, after.image_BHWC)
    _forbid_reading(monkeypatch)
    data.load("tiny", "train", data_dir=str(tiny))


def test_flipped_bit_in_the_cache_is_noticed(tiny, cache_dir):
    before = data.load("tiny", "train", data_dir=str(tiny))
    (file,) = cache_dir.iterdir()
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)
    after = data.load("tiny", "train", data_dir=str(tiny))
    np.testing.assert_array_equal(before.image_BHWC, after.image_BHWC)


def test_unwritable_cache_is_skipped(tiny, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(data.load("tiny", "test", data_dir=str(tiny)).label_B) == NUM_TEST
    assert "no cache written" in caplog.text


def test_failed_write_leaves_nothing(tiny, cache_dir, monkeypatch):
    def full(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert len(data.load("tiny", "test", data_dir=str(tiny)).label_B) == NUM_TEST
    assert list(cache_dir.iterdir()) == []


# sets that are not prepared


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mnst", "dataset 'mnst' is unknown"),
        ("digit", "near: digits"),
        ("cifar10/nonsense", "TFDS has 'cifar10', but not in this config or version"),
        ("mnist:9.9.9", "TFDS has 'mnist', but not in this config or version"),
        ("../mnist", "is not a name"),
        ("a b", "is not a name"),
        ("", "is not a name"),
    ],
)
def test_unknown_names(tmp_path, name, expected):
    message = _message(lambda: data.load(name, "train", data_dir=str(tmp_path)))
    assert expected in message
    assert list(tmp_path.iterdir()) == []


def test_text_set_is_refused_before_it_is_downloaded(tmp_path):
    message = _message(
        lambda: data.load("imdb_reviews", "train", data_dir=str(tmp_path))
    )
    assert "is not an image-classification set" in message


@pytest.mark.usefixtures("no_tensorflow")
def test_preparing_needs_tensorflow(tmp_path):
    message = _message(lambda: data.load("mnist", "train", data_dir=str(tmp_path)))
    assert f"'mnist' is not prepared in {tmp_path}" in message
    assert 'pip install "vit-resnet-jax[prepare]"' in message


def test_manual_dir_must_exist(tmp_path):
    missing = str(tmp_path / "nowhere")
    message = _message(
        lambda: data.load("mnist", "train", data_dir=str(tmp_path), manual_dir=missing)
    )
    assert f"manual_dir {missing!r} is not a folder" in message


def test_data_dir_must_be_local():
    message = _message(lambda: data.load("mnist", "train", data_dir="gs://bucket/x"))
    assert "data_dir 'gs://bucket/x' is not a local folder" in message


def test_importing_is_cheap():
    program = (
        "import sys, train_jax.data;"
        "print([n for n in ('tensorflow_datasets', 'tensorflow', 'sklearn', 'cv2')"
        " if n in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert result.stdout.strip() == "[]"


def test_message_without_data_and_network(tmp_path, monkeypatch):
    import requests

    def fail(*args):
        raise requests.ConnectionError("no route to host")

    monkeypatch.setattr(data, "_import_tensorflow", lambda purpose: None)
    monkeypatch.setattr(data, "_download_and_prepare", fail)
    (tmp_path / "manual").mkdir()
    (tmp_path / "manual" / "t10k-labels-idx1-ubyte.gz").touch()
    message = _message(
        lambda: data.load(
            "mnist",
            "train",
            data_dir=str(tmp_path),
            manual_dir=str(tmp_path / "manual"),
        ),
        max_lines=4,
    )
    for part in (
        "no route to host",
        "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz",
        "--config.dataset.manual_dir=FOLDER",
        "mnist/3.0.1",
        "TFDS_DATA_DIR",
        "configs/vit_digits.py runs without any download",
    ):
        assert part in message
    assert "t10k-labels" not in message  # It is in manual_dir already.


@pytest.mark.slow
def test_failed_download_is_reported_soon(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    message = _message(
        lambda: data.load("mnist", "train", data_dir=str(tmp_path)), max_lines=4
    )
    assert "can't be downloaded" in message
    assert not (tmp_path / "mnist" / "3.0.1").exists()


@pytest.mark.slow
@needs_archives
def test_truncated_archive(tmp_path):
    pytest.importorskip("tensorflow")
    manual = tmp_path / "manual"
    manual.mkdir()
    for file in pathlib.Path(os.environ["MNIST_ARCHIVES"]).iterdir():
        (manual / file.name).write_bytes(file.read_bytes())
    os.truncate(manual / "train-labels-idx1-ubyte.gz", 1000)
    root = tmp_path / "data"
    for _ in range(2):  # The failure leaves nothing that a second start would trust.
        message = _message(
            lambda: data.load(
                "mnist", "train", data_dir=str(root), manual_dir=str(manual)
            )
        )
        assert str(manual / "train-labels-idx1-ubyte.gz") in message
        assert "Expected: " in message
        assert "Got: " in message
        assert not (root / "mnist" / "3.0.1").exists()


@pytest.mark.slow
@pytest.mark.tfds
@needs_tfds_dir
@needs_archives
def test_mnist_from_archives_equals_the_prepared_set(tmp_path, capfd):
    pytest.importorskip("tensorflow")
    archives = os.environ["MNIST_ARCHIVES"]
    for split in ("train", "test"):
        ours = data.load("mnist", split, data_dir=str(tmp_path), manual_dir=archives)
        theirs = data.load("mnist", split)
        np.testing.assert_array_equal(ours.image_BHWC, theirs.image_BHWC)
        np.testing.assert_array_equal(ours.label_B, theirs.label_B)
        assert ours.class_names == theirs.class_names
    printed = capfd.readouterr()
    assert printed.out == f"Preparing mnist in {tmp_path}/mnist/3.0.1 (once) ...\n"
    assert printed.err == ""


@pytest.mark.slow
def test_tfrecord_is_read_in_the_order_of_the_files(tiny, tmp_path):
    tf = pytest.importorskip("tensorflow")
    root = tmp_path / "tfrecord"
    folder = root / "tiny" / "1.0.0"
    _write_set(folder, {"train": _encoded(NUM_TRAIN)}, file_format="tfrecord")
    from array_record.python.array_record_module import ArrayRecordReader

    for file in folder.glob("tiny-train*"):
        reader = ArrayRecordReader(str(file))
        records = reader.read_all()
        reader.close()
        with tf.io.TFRecordWriter(str(file)) as writer:
            for record in records:
                writer.write(record)
    ours = data.load("tiny", "train", data_dir=str(root))
    theirs = data.load("tiny", "train", data_dir=str(tiny))
    np.testing.assert_array_equal(ours.image_BHWC, theirs.image_BHWC)
    np.testing.assert_array_equal(ours.label_B, theirs.label_B)

    file = next(folder.glob("tiny-train*00001-of-*"))
    os.truncate(file, file.stat().st_size // 2)
    message = _message(lambda: data.load("tiny", "train", data_dir=str(root)))
    assert f"the prepared dataset in {folder} is damaged" in message


# real data


@pytest.mark.tfds
@needs_tfds_dir
@pytest.mark.parametrize(
    ("name", "shape", "mean", "std"),
    [
        ("mnist", (28, 28, 1), (0.1307,), (0.3081,)),
        (
            "cifar10",
            (32, 32, 3),
            (0.4914, 0.4822, 0.4465),
            (0.2470, 0.2435, 0.2616),
        ),
    ],
)
def test_real_statistics(name, shape, mean, std):
    train, test = data.load(name, "train"), data.load(name, "test")
    assert train.image_BHWC.shape[1:] == test.image_BHWC.shape[1:] == shape
    assert train.image_BHWC.shape[0] == {"mnist": 60_000, "cifar10": 50_000}[name]
    assert test.image_BHWC.shape[0] == 10_000
    pixel_XC = train.image_BHWC.reshape(-1, shape[-1]) / np.float32(255)
    np.testing.assert_allclose(pixel_XC.mean(0, dtype=np.float64), mean, atol=1e-4)
    np.testing.assert_allclose(pixel_XC.std(0, dtype=np.float64), std, atol=2e-4)
    assert set(np.bincount(test.label_B)) <= set(range(850, 1200))
    assert len(set(train.class_names)) == 10
