"""Importing a model package loads only what it needs and changes no setting."""

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
PACKAGES = ("vit_jax", "resnet_jax", "train_jax")

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
