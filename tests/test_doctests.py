"""The examples in the docstrings of the model packages run, and none is missing."""

import doctest
import functools
import importlib
import inspect
import pkgutil

import pytest

import resnet_jax
import vit_jax
from vit_jax import interpret

PACKAGES = (vit_jax, resnet_jax)
MODULES = [
    name
    for package in PACKAGES
    for _, name, _ in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_a_module_run(name):
    module = importlib.import_module(name)
    assert doctest.testmod(module, raise_on_error=False).failed == 0


def _public() -> dict[str, object]:
    """Collect what users import: `__all__`, and the functions of `interpret`."""
    public = {
        f"{package.__name__}.{name}": getattr(package, name)
        for package in PACKAGES
        for name in package.__all__
    }
    for name, function in inspect.getmembers(interpret, inspect.isfunction):
        if function.__module__ == interpret.__name__ and not name.startswith("_"):
            public[f"{interpret.__name__}.{name}"] = function
    return public


@pytest.mark.parametrize("name", _public())
def test_every_public_name_has_an_example(name):
    value = _public()[name]
    # A preset is a partial of a class, and has the class's example.
    value = value.func if isinstance(value, functools.partial) else value
    assert ">>> " in (inspect.getdoc(value) or "")


@pytest.mark.parametrize("package", PACKAGES)
def test_a_star_import_binds_the_public_names_and_no_module(package):
    names: dict[str, object] = {}
    exec(f"from {package.__name__} import *", names)
    del names["__builtins__"]
    assert set(names) == set(package.__all__)
    assert len(names) == len(package.__all__)
    assert not [name for name, value in names.items() if inspect.ismodule(value)]
