"""Errors for datasets, versions and folders that don't exist."""

import shutil

import pytest

from tests.train.data.tiny_set import NUM_TEST, encoded, message_of, write_set
from train_jax import data


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
        ("mnist:3.0.9", "but not in this config or version; its versions: 3.0.1"),
        ("MNIST:3.0.9", "but not in this config or version; its versions: 3.0.1"),
        ("mnist/nonsense", "or version; its configs: none"),
        ("cifar10_corrupted:9.9.9", "or version; its versions: 1.0.0"),
        ("cifar10_corrupted/fog_1:9.9.9", "or version; its versions: 1.0.0"),
        ("cifar10_corrupted/fog", "its configs: brightness_1, brightness_2, "),
        ("food101:1.0.0", "can't prepare version 1.0.0, only: 2.0.0, 2.1.0"),
        ("x" * 300, "xxx"),
    ],
)
def test_unknown_names(tmp_path, name, expected):
    message = message_of(lambda: data.load(name, "train", data_dir=str(tmp_path)))
    assert expected in message
    assert list(tmp_path.iterdir()) == []


def test_error_names_the_prepared_versions(tmp_path, tiny):
    for name, version in (("tiny:9.9.9", "1.0.0"), ("mnist:3.0.9", "2.5.0")):
        dataset = name.partition(":")[0]
        if dataset != "tiny":
            shutil.copytree(tiny / "tiny" / "1.0.0", tiny / dataset / version)
        message = message_of(lambda n=name: data.load(n, "train", data_dir=str(tiny)))
        assert message.endswith(f"; prepared in {tiny}: {dataset}:{version}")
    root = tmp_path / "configs"
    for config in ("small", "large"):
        write_set(root / "tiny" / config / "1.0.0", {"train": encoded(3)})
    for name in ("tiny", "tiny/medium", "tiny/small:2.0.0"):
        message = message_of(lambda n=name: data.load(n, "train", data_dir=str(root)))
        assert f"dataset {name!r} is unknown" in message
        both = "tiny/large:1.0.0, tiny/small:1.0.0"
        assert message.endswith(f"; prepared in {root}: {both}")


@pytest.mark.parametrize(
    ("name", "version", "expected"),
    [
        (
            "mnist",
            "3.0.1",
            "the prepared dataset in {} has no dataset_info.json; delete",
        ),
        (
            "tiny",
            "1.0.0",
            "TFDS can't open 'tiny': Could not read dataset info from {}/",
        ),
    ],
)
def test_a_folder_without_dataset_info(tmp_path, capsys, name, version, expected):
    folder = write_set(tmp_path / name / version, {"train": encoded(3)})
    (folder / "dataset_info.json").unlink()
    message = message_of(lambda: data.load(name, "train", data_dir=str(tmp_path)))
    assert message.startswith(expected.format(folder))
    assert capsys.readouterr().out == ""


def test_manual_dir_must_exist(tmp_path):
    missing = str(tmp_path / "nowhere")
    message = message_of(
        lambda: data.load("mnist", "train", data_dir=str(tmp_path), manual_dir=missing)
    )
    assert f"manual_dir {missing!r} is not a folder" in message


@pytest.mark.parametrize("address", ["gs://bucket/x", "s3:/bucket", "file:///x"])
def test_the_archives_must_be_local(address):
    message = message_of(lambda: data.load("mnist", "train", manual_dir=address))
    expected = f"manual_dir must be a path on this machine, got the address {address!r}"
    assert message == expected


@pytest.mark.parametrize("address", ["s3://bucket", "file:///x"])
def test_data_dir_must_be_local_or_of_a_known_store(monkeypatch, address):
    expected = f" must be a path on this machine or gs://BUCKET/FOLDER, got {address!r}"
    message = message_of(lambda: data.load("mnist", "train", data_dir=address))
    assert message == "data_dir" + expected
    monkeypatch.setenv("TFDS_DATA_DIR", address)
    message = message_of(lambda: data.load("mnist", "train"))
    assert message == "TFDS_DATA_DIR" + expected


def test_data_dir_may_not_be_a_file(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.touch()
    message = message_of(lambda: data.load("mnist", "train", data_dir=str(file)))
    assert message == f"data_dir {str(file)!r} is not a folder"
    monkeypatch.setenv("TFDS_DATA_DIR", str(file))
    message = message_of(lambda: data.load("mnist", "train"))
    assert message == f"TFDS_DATA_DIR {str(file)!r} is not a folder"


def test_home_folder_is_expanded(tiny, monkeypatch):
    monkeypatch.setenv("HOME", str(tiny.parent))
    assert len(data.load("tiny", "test", data_dir="~/data")) == NUM_TEST
    monkeypatch.setenv("TFDS_DATA_DIR", "~/data")
    assert len(data.load("tiny", "test")) == NUM_TEST
    missing = message_of(lambda: data.load("tiny", "test", manual_dir="~/nowhere"))
    assert f"manual_dir '{tiny.parent}/nowhere' is not a folder" in missing
