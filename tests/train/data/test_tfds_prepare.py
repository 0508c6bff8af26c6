"""Preparing sets, and the messages when that is not possible."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests.train.data.tiny_set import NUM_TRAIN, encoded, message_of, write_set
from train_jax import data
from train_jax.data import tfds_prepare

needs_tfds_dir = pytest.mark.skipif(
    "TFDS_DATA_DIR" not in os.environ, reason="TFDS_DATA_DIR is not set"
)
needs_archives = pytest.mark.skipif(
    "MNIST_ARCHIVES" not in os.environ, reason="MNIST_ARCHIVES is not set"
)


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
    message = message_of(lambda: data.load(name, "train", data_dir=str(tmp_path)))
    assert expected in message
    assert list(tmp_path.iterdir()) == []


def test_text_set_is_refused_before_it_is_downloaded(tmp_path):
    message = message_of(
        lambda: data.load("imdb_reviews", "train", data_dir=str(tmp_path))
    )
    assert "is not an image-classification set" in message


@pytest.mark.usefixtures("no_tensorflow")
def test_preparing_needs_tensorflow(tmp_path):
    message = message_of(lambda: data.load("mnist", "train", data_dir=str(tmp_path)))
    assert f"'mnist' is not prepared in {tmp_path}" in message
    assert 'pip install "vit-resnet-jax[prepare]"' in message


def test_manual_dir_must_exist(tmp_path):
    missing = str(tmp_path / "nowhere")
    message = message_of(
        lambda: data.load("mnist", "train", data_dir=str(tmp_path), manual_dir=missing)
    )
    assert f"manual_dir {missing!r} is not a folder" in message


def test_data_dir_must_be_local():
    message = message_of(lambda: data.load("mnist", "train", data_dir="gs://bucket/x"))
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

    monkeypatch.setattr(tfds_prepare, "import_tensorflow", lambda purpose: None)
    monkeypatch.setattr(tfds_prepare, "_download_and_prepare", fail)
    (tmp_path / "manual").mkdir()
    (tmp_path / "manual" / "t10k-labels-idx1-ubyte.gz").touch()
    message = message_of(
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
    message = message_of(
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
        message = message_of(
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
    write_set(folder, {"train": encoded(NUM_TRAIN)}, file_format="tfrecord")
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
    message = message_of(lambda: data.load("tiny", "train", data_dir=str(root)))
    assert f"the prepared dataset in {folder} is damaged" in message


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
    value_V = np.arange(256) / 255
    for channel in range(shape[-1]):
        share_V = np.bincount(train.image_BHWC[..., channel].ravel(), minlength=256)
        share_V = share_V / share_V.sum()
        ours = share_V @ value_V
        spread = np.sqrt(share_V @ (value_V - ours) ** 2)
        np.testing.assert_allclose(ours, mean[channel], atol=1e-4)
        np.testing.assert_allclose(spread, std[channel], atol=1e-4)
    assert set(np.bincount(test.label_B)) <= set(range(850, 1200))
    assert len(set(train.class_names)) == 10
