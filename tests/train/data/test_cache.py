"""The cache of decoded splits."""

import os
import subprocess
import sys

import numpy as np
import pytest

from tests.train.data.tiny_set import NUM_TEST
from train_jax import data
from train_jax.data import tfds_read


def _forbid_reading(monkeypatch) -> None:
    def refuse(*args):
        raise AssertionError("the prepared files were read")

    monkeypatch.setattr(tfds_read, "read_prepared", refuse)


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
