"""Fixtures of the data tests."""

import builtins
import pathlib

import pytest

from tests.train.data.tiny_set import NUM_TEST, NUM_TRAIN, encoded, write_set


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch):
    """Keep every test away from the user's own cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vit-resnet-jax"


@pytest.fixture
def tiny(tmp_path) -> pathlib.Path:
    """A data_dir with the prepared set tiny/1.0.0."""
    examples = {"train": encoded(NUM_TRAIN), "test": encoded(NUM_TEST)}
    write_set(tmp_path / "data" / "tiny" / "1.0.0", examples)
    return tmp_path / "data"


@pytest.fixture
def no_tensorflow(monkeypatch):
    """Let the data code, and nobody else, find that TensorFlow is not installed."""
    real_import = builtins.__import__

    def fake_import(name, globals=None, *args, **kwargs):
        importer = (globals or {}).get("__name__", "")
        if name == "tensorflow" and importer.startswith("train_jax."):
            raise ImportError(name)
        return real_import(name, globals, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", fake_import)
