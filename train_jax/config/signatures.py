"""Read a model's fields and an optimiser's arguments from their signatures."""

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from train_jax.config.fields import SECTIONS, Config
from train_jax.config.models import MODELS, model_fields
from train_jax.config.options import Option, options_of
from train_jax.config.rules import rule_of
from train_jax.learning.optim import OPTIMIZERS


def all_options(*, model: str, optimizer: str) -> dict[str, Option]:
    """List every field of a config: dotted name → row of the table.

    Args:
        model: name of the model.
        optimizer: name of the optimiser.

    Raises:
        KeyError: if one of them is unknown.
    """
    arguments = {
        "model": model_options(model),
        "optimizer": optimizer_options(optimizer),
    }
    found = {}
    for section, its_class in SECTIONS.items():
        options = options_of(its_class) | arguments.get(section, {})
        found |= {f"{section}.{name}": option for name, option in options.items()}
    return found | options_of(Config)


def model_options(name: str) -> dict[str, Option]:
    """List the fields of a model's module."""
    return _options(MODELS[name], model_fields(name))


def optimizer_options(name: str) -> dict[str, Option]:
    """List the arguments of an optimiser; those that are numbers can be swept."""
    function = OPTIMIZERS[name]
    parameters = inspect.signature(function).parameters
    return {
        name: dataclasses.replace(
            option, sweepable=parameters[name].annotation in (float, float | None)
        )
        for name, option in _options(function, parameters).items()
    }


def _options(
    function: Callable[..., Any], parameters: Mapping[str, inspect.Parameter]
) -> dict[str, Option]:
    meanings = _meanings(unwrap(function).__doc__ or "")
    return {
        name: Option(
            dataclasses.MISSING if p.default is p.empty else p.default,
            rule_of(name, p.annotation),
            meanings.get(name, ""),
        )
        for name, p in parameters.items()
    }


def unwrap(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return what partial applications, such as a preset, are made of."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _meanings(docstring: str) -> dict[str, str]:
    """Read what each argument means from the Args or Attributes of a docstring."""
    text = inspect.cleandoc(docstring)
    section = re.search(r"^(?:Args|Attributes):\n((?: .*\n?|\n)*)", text, re.M)
    if section is None:
        return {}
    indent = re.match(" *", section[1])[0]  # type: ignore (always matches)
    entries = re.findall(rf"^{indent}(\w+): (.*(?:\n{indent} +.*)*)", section[1], re.M)
    return {name: " ".join(words.split()).rstrip(".") for name, words in entries}
