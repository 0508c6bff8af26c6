"""The wheel holds every package."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_package_is_listed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    files = [
        p
        for name in ("vit_jax", "resnet_jax", "weight_files", "train_jax")
        for p in (ROOT / name).rglob("*.py")
    ]
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in files}
    listed = project["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted({*folders, "train_jax.configs"})
