"""Prepare sets; errors when that is not possible."""

import os
import pathlib
import subprocess
import sys
import types

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
        "--config vit_digits runs without any download",
    ):
        assert part in message
    assert "t10k-labels" not in message  # It is in manual_dir already.


def _prepare_by(monkeypatch, action) -> None:
    """Let `action(builder, manual)` do what TFDS would do."""
    monkeypatch.setattr(tfds_prepare, "import_tensorflow", lambda purpose: None)
    monkeypatch.setattr(tfds_prepare, "_download_and_prepare", action)


def _prepare_with(monkeypatch, tmp_path, action, name="mnist", **folders) -> str:
    """Let `action` prepare a set, which must fail, and give the message."""
    _prepare_by(monkeypatch, action)
    root = str(tmp_path / "data")
    return message_of(lambda: data.load(name, "train", data_dir=root, **folders))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resisc45", "dataset 'resisc45' needs --config.dataset.manual_dir=FOLDER. "),
        ("mnist", "cannot prepare 'mnist' in {root}: "),
    ],
)
def test_an_assertion_of_tfds(tmp_path, monkeypatch, name, expected):
    def refuse(builder, manual):
        raise AssertionError("Why\nnot.")

    message = _prepare_with(monkeypatch, tmp_path, refuse, name)
    assert message == expected.format(root=tmp_path / "data") + "Why not."


URL = "https://storage.googleapis.com/cvdf-datasets/mnist/train-labels-idx1-ubyte.gz"


@pytest.mark.parametrize("by_hand", [False, True])
def test_an_altered_archive(tmp_path, monkeypatch, by_hand):
    from tensorflow_datasets.core.download import checksums, download_manager

    def download(builder, manual):
        root = pathlib.Path(builder.data_dir_root)
        folder = root / "downloads" / "mnist" / "labels.gz.tmp.123"
        folder.mkdir(parents=True)
        file = (tmp_path if by_hand else folder) / "train-labels-idx1-ubyte.gz"
        file.write_bytes(b"x" * 99)
        raise download_manager.NonMatchingChecksumError(
            f"Artifact {URL}, downloaded to {file}, has wrong checksum:\n"
            f"* Expected: {builder.url_infos[URL]}\n"
            f"* Got: {checksums.compute_url_info(file)}\nTo debug, see: https://..."
        )

    folders = {"manual_dir": str(tmp_path)} if by_hand else {}
    message = _prepare_with(monkeypatch, tmp_path, download, **folders)
    file = tmp_path / "train-labels-idx1-ubyte.gz" if by_hand else URL
    assert f"dataset 'mnist': {file} is not the original archive" in message
    assert "Expected: 28881 bytes, sha256 3552534a0a55...; Got: 99 bytes" in message
    assert "UrlInfo" not in message
    assert "compressed anew or altered on the way; download it again" in message
    assert ("or give the original" in message) == by_hand
    assert not (tmp_path / "data").exists()


def test_a_failure_removes_what_it_began_and_nothing_else(tmp_path, monkeypatch):
    root = tmp_path / "data"
    downloads = root / "downloads" / "mnist"
    old = [downloads / "other.tmp.1" / "half", root / "mnist" / "2.0.0" / "kept"]
    for path in old:
        path.parent.mkdir(parents=True)
        path.touch()
    complete = downloads / "complete"

    def download(builder, manual):
        (downloads / "images.tmp.2").mkdir()
        (downloads / "images.tmp.2" / "half").touch()
        complete.touch()
        raise KeyError("any\nkind")

    message = _prepare_with(monkeypatch, tmp_path, download)
    assert message == f"cannot prepare 'mnist' in {root}: 'any\\nkind'"
    files = {path for path in root.rglob("*") if path.is_file()}
    assert files == {*old, complete}
    assert not (downloads / "images.tmp.2").exists()


def test_a_failure_removes_the_note_of_a_default_config(tmp_path, monkeypatch):
    def download(builder, manual):
        root = pathlib.Path(builder.data_dir_root)
        (root / "cifar10_corrupted" / ".config").mkdir(parents=True)
        note = root / "cifar10_corrupted" / ".config" / "metadata.json"
        note.write_text("{}", encoding="utf-8")
        (root / "cifar10_corrupted" / "fog_1").mkdir()
        raise KeyboardInterrupt

    _prepare_by(monkeypatch, download)
    with pytest.raises(KeyboardInterrupt):
        data.load("cifar10_corrupted/fog_1", "test", data_dir=str(tmp_path / "data"))
    assert list(tmp_path.iterdir()) == []


def test_a_set_that_another_process_prepared_meanwhile(tmp_path, monkeypatch):
    def lose(builder, manual):
        write_set(pathlib.Path(builder.data_dir), {"train": encoded(NUM_TRAIN)})
        raise FileExistsError("Directory not empty")

    _prepare_by(monkeypatch, lose)
    assert len(data.load("mnist", "train", data_dir=str(tmp_path))) == NUM_TRAIN


@pytest.mark.slow  # The import of TensorFlow takes ten seconds.
def test_failed_download_is_explained(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    root = tmp_path / "data"
    message = message_of(
        lambda: data.load("mnist", "train", data_dir=str(root)), max_lines=4
    )
    assert "can't be downloaded" in message
    assert not root.exists()


@pytest.mark.slow  # The import of TensorFlow takes ten seconds.
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
        assert "Expected: 28881 bytes, sha256 3552534a0a55" in message
        assert "Got: 1000 bytes, sha256 " in message
        assert not (root / "mnist" / "3.0.1").exists()
        assert not root.exists()


@pytest.mark.slow  # TFDS encodes 70,000 images.
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


@pytest.mark.slow  # The import of TensorFlow takes ten seconds.
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


@pytest.mark.parametrize("has_names", [True, False])
def test_retries_are_few_if_this_version_of_tfds_has_them(
    tmp_path, monkeypatch, has_names
):
    from tensorflow_datasets.core.download import downloader

    seen = []
    names = ("MAX_RETRIES", "_open_url")
    if not has_names:
        for name in names:
            monkeypatch.delattr(downloader, name)
    builder = types.SimpleNamespace(
        data_dir_root=tmp_path / "data",
        download_and_prepare=lambda **_: seen.extend(
            getattr(downloader, name, None) for name in names
        ),
    )
    tfds_prepare._download_and_prepare(builder, None)
    retries, open_url = seen
    if has_names:
        assert (retries, open_url.keywords) == (3, {"timeout": 10})
    else:
        assert seen == [None, None]
