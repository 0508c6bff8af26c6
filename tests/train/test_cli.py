"""What the commands share."""

import os
import subprocess
import sys

import jax
import pytest

from train_jax import cli

CACHE = "jax_compilation_cache_dir"


@pytest.fixture
def no_cache():
    """As when a command starts."""
    before = jax.config.values[CACHE]
    jax.config.update(CACHE, None)
    yield
    jax.config.update(CACHE, before)


def test_compiled_programs_are_kept(no_cache, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cli.keep_compiled_programs()
    folder = jax.config.values[CACHE]
    assert folder.startswith(str(tmp_path / "vit-resnet-jax" / "compiled-"))
    cli.keep_compiled_programs()
    assert jax.config.values[CACHE] == folder


def test_a_folder_that_the_user_names_is_used(no_cache, tmp_path):
    jax.config.update(CACHE, str(tmp_path))
    cli.keep_compiled_programs()
    assert jax.config.values[CACHE] == str(tmp_path)


def test_a_second_start_compiles_nothing(tmp_path):
    def start(name: str) -> set[str]:
        environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "XLA_FLAGS": ""}
        subprocess.run(
            [
                *(sys.executable, "train.py", "--config", "configs/vit_digits.py"),
                *("--workdir", str(tmp_path / name), "--config.num_steps=1"),
                *("--config.model.depth=1", "--config.optimizer.warmup_epochs=0"),
            ],
            env=environment,
            check=True,
            capture_output=True,
        )
        (folder,) = tmp_path.glob("vit-resnet-jax/compiled-*")
        return {path.name for path in folder.glob("*-cache")}

    first = start("a")
    assert any("take_steps" in name for name in first)
    assert start("b") == first
