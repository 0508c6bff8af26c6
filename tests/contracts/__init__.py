"""How public functions of arrays are called rightly and wrongly."""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Contract(NamedTuple):
    """How to call a function rightly and wrongly.

    Attributes:
        good: arguments that it accepts.
        wrong: arguments of which one array has a wrong rank; None if none is an array.
        inner: path of the function whose result is replaced.
        call: what is called with the arguments; by default the function itself.
        misshape: makes a wrong shape of an array of that result.
        layer: name of the layer whose result is replaced, if the inner function is the
            call of several.
        blamed: name of the function that must notice, if it is not the function itself.
    """

    good: tuple
    wrong: tuple | None
    inner: str
    call: Callable[..., Any] | None = None
    misshape: Callable[[jax.Array], jax.Array] = lambda x: x[None]
    layer: str | None = None
    blamed: str | None = None


def resolve(path: str) -> Any:
    """Find a module, or a class, function or method in one."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        owner, _, name = path.rpartition(".")
        return getattr(resolve(owner), name)
