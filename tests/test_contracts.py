"""Public functions of arrays assert shapes: of what comes in, and of what goes out.

Each is called with an array of a wrong rank, which it must reject itself, and with an
inner function replaced by one whose result has a wrong shape, which it must notice.
"""

import importlib
import inspect
import pkgutil
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest

from tests.contracts import models, resolve, trainer

ROOT = Path(__file__).parents[1]
PACKAGES = ("vit_jax", "resnet_jax", "train_jax.learning", "train_jax.tasks")
CONTRACTS = models.CONTRACTS | trainer.CONTRACTS
EXEMPT = models.EXEMPT | trainer.EXEMPT


def _public() -> set[str]:
    """Collect public functions, callable modules, and methods of other classes."""
    found = set()
    for package in map(importlib.import_module, PACKAGES):
        prefix = f"{package.__name__}."
        modules = pkgutil.walk_packages(package.__path__, prefix)
        for path in [package.__name__, *(module.name for module in modules)]:
            for name, value in vars(importlib.import_module(path)).items():
                is_own = getattr(value, "__module__", None) == path
                # Those of weights take arrays by their names, as files have them.
                is_of_files = ".weights." in path and f"{path}.{name}" not in CONTRACTS
                if not is_own or name.startswith("_") or is_of_files:
                    continue
                is_module = inspect.isclass(value) and "__call__" in dir(value)
                if inspect.isfunction(value) or is_module:
                    found.add(f"{path}.{name}")
                elif inspect.isclass(value):
                    found |= {
                        f"{path}.{name}.{method}"
                        for method, function in vars(value).items()
                        if inspect.isfunction(function)
                        and function.__module__ == path
                        and not method.startswith("_")
                    }
    return found


def _trace(call: Callable[..., Any], arguments: tuple) -> None:
    """Call a function in a trace: shapes are asserted there, and nothing is compiled.

    The arguments are constants of the trace, whose values can be read.
    """

    def run() -> None:
        call(*arguments)

    jax.eval_shape(run)


def _blamed(error: pytest.ExceptionInfo) -> str:
    """Name the function of the packages that asserted: the innermost frame.

    What it has a `_check…` of its own for, it asserts itself. JAX leaves its own frames
    out of the traceback of a trace, and keeps those of the packages.
    """
    folders = [str(ROOT / package.replace(".", "/")) for package in PACKAGES]
    *_, frame = (
        frame.f_code
        for frame, _ in traceback.walk_tb(error.tb)
        if frame.f_code.co_filename.startswith(tuple(folders))
        and not frame.f_code.co_name.startswith("_check")
    )
    return frame.co_qualname


def _expected(name: str) -> str:
    if CONTRACTS[name].blamed is not None:
        return CONTRACTS[name].blamed
    value = resolve(name)
    return (value.__call__ if inspect.isclass(value) else value).__qualname__


def test_every_public_function_has_a_contract():
    assert _public() == {*CONTRACTS, *EXEMPT}
    assert not CONTRACTS.keys() & EXEMPT.keys()


@pytest.mark.parametrize("name", CONTRACTS)
def test_arguments_are_accepted(name):
    contract = CONTRACTS[name]
    _trace(contract.call or resolve(name), contract.good)


@pytest.mark.parametrize("name", [n for n, c in CONTRACTS.items() if c.wrong])
def test_a_wrong_rank_is_rejected_at_the_entrance(name):
    contract = CONTRACTS[name]
    with pytest.raises(AssertionError) as error:
        _trace(contract.call or resolve(name), contract.wrong)
    assert _blamed(error) == _expected(name)


@pytest.mark.parametrize("name", CONTRACTS)
def test_a_wrong_result_is_noticed_at_the_exit(name, monkeypatch):
    contract, expected = CONTRACTS[name], _expected(name)
    call = contract.call or resolve(name)
    module, _, attribute = contract.inner.rpartition(".")
    owner = resolve(module)
    inner = getattr(owner, attribute)

    def misshapen(*args, **kwargs):
        result = inner(*args, **kwargs)
        if contract.layer is not None and args[0].name != contract.layer:
            return result
        return jax.tree.map(contract.misshape, result)

    monkeypatch.setattr(owner, attribute, misshapen)
    with (
        jax.numpy_rank_promotion("allow"),
        pytest.raises(AssertionError) as error,
    ):
        _trace(call, contract.good)
    assert _blamed(error) == expected
