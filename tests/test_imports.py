"""Imports load only what is needed, change no setting, and run one way."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = (
    "matplotlib",
    "optax",
    "orbax",
    "sklearn",
    "tensorflow",
    "tensorflow_datasets",
    "torch",
)
PACKAGES = ("vit_jax", "resnet_jax", "weight_files", "train_jax")
# Packages of the trainer: each may import those that follow it.
LAYERS = (
    *("inference", "run", "tasks", "output", "cli"),
    *("config", "data", "learning", "devices", "storage"),
)

# Modules that flax.linen itself loads do not count, so it is imported first.
SCRIPT = """
import importlib, json, sys
import flax.linen, jax

loaded, config = set(sys.modules), dict(jax.config.values)
for name in sys.argv[1:]:
    importlib.import_module(name)
changed = [key for key, x in jax.config.values.items() if config.get(key, x) != x]
new = sorted({name.partition(".")[0] for name in set(sys.modules) - loaded})
print(json.dumps({"new": new, "changed": changed}))
"""


def _import(*packages: str) -> dict:
    """Import packages in a fresh interpreter."""
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, *packages],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(process.stdout)


@pytest.mark.parametrize("package", ["vit_jax", "resnet_jax"])
def test_model_package_loads_only_what_it_needs(package):
    report = _import(package)
    assert package in report["new"]
    forbidden = {*HEAVY, *PACKAGES} - {package}
    assert forbidden.isdisjoint(report["new"])
    assert report["changed"] == []


def test_trainer_loads_no_other_framework():
    report = _import("train_jax.run.experiment")
    assert {"sklearn", "tensorflow", "torch"}.isdisjoint(report["new"])
    assert report["changed"] == []


def _imported_layers(path: Path) -> set[str]:
    """List the packages of the trainer that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    parts = [name.split(".") for name in names]
    return {part[1] for part in parts if part[0] == "train_jax" and len(part) > 1}


@pytest.mark.parametrize("layer", LAYERS)
def test_trainer_imports_run_one_way(layer):
    allowed = set(LAYERS[LAYERS.index(layer) :])
    paths = list((ROOT / "train_jax" / layer).glob("*.py"))
    assert paths
    for path in paths:
        assert _imported_layers(path) <= allowed, path


def test_every_package_of_the_trainer_is_a_layer():
    packages = {path.parent.name for path in ROOT.glob("train_jax/*/__init__.py")}
    assert packages == set(LAYERS)
