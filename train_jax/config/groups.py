"""Groups of parameters, each with its own optimiser, rate and schedule."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from train_jax.config.fields import TABLE
from train_jax.config.optimizer_fields import SHARED, GroupConfig
from train_jax.config.options import closest, options_of
from train_jax.config.rules import check
from train_jax.config.signatures import optimizer_options


def resolve_groups(
    given: Mapping[str, Any], values: Mapping[str, Any]
) -> dict[str, GroupConfig]:
    """Complete and check each group; what it leaves out is as in `optimizer`.

    Args:
        given: dotted field name → value, `groups.NAME.FIELD` among them.
        values: the checked fields of `optimizer`.

    Raises:
        ValueError: naming the field, the value, and what is allowed.
    """
    fields = [field.split(".", 2) for field in given if field.startswith("groups.")]
    for parts in fields:
        if len(parts) < 3:
            raise ValueError(
                f"config.{'.'.join(parts)} must be a section with the field params"
            )
    return {
        name: _resolve_group(f"groups.{name}.", given, values)
        for name in dict.fromkeys(name for _, name, _ in fields)
    }


def _resolve_group(
    prefix: str, given: Mapping[str, Any], values: Mapping[str, Any]
) -> GroupConfig:
    """Complete and check a group."""
    optimizer = given.get(f"{prefix}name", values["optimizer.name"])
    check(f"{prefix}name", optimizer, TABLE["optimizer.name"].rule)
    own, arguments = options_of(GroupConfig), optimizer_options(optimizer)
    options = {f"{prefix}{key}": option for key, option in (own | arguments).items()}
    for field in given:
        if field.startswith(prefix) and field not in options:
            raise ValueError(f"config.{field} is unknown{suggest(field, options)}")
    is_same = optimizer == values["optimizer.name"]
    inherited = SHARED | (arguments.keys() if is_same else set())
    found: dict[str, Any] = {}
    for field, option in options.items():
        name, default = field.removeprefix(prefix), option.default
        if name in inherited:
            default = values[f"optimizer.{name}"]
        value = given.get(field, default)
        if value is dataclasses.MISSING:
            raise ValueError(f"config.{field} is missing: {option.rule.allowed}")
        check(field, value, option.rule)
        found[name] = tuple(value) if isinstance(value, list) else value
    for name in inherited if found["learning_rate"] else ():
        is_swept = given.get(f"sweep.optimizer.{name}") is not None
        if is_swept and f"{prefix}{name}" not in given:
            raise ValueError(
                f"config.{prefix}{name} must be given, as "
                f"config.sweep.optimizer.{name} does not reach a group"
            )
    return GroupConfig(arguments={name: found.pop(name) for name in arguments}, **found)


def suggest(field: str, known: Collection[str]) -> str:
    """Name the closest known field, or the fields of the same section."""
    if close := closest(field, known):
        return f"; did you mean config.{close}?"
    section = field.rpartition(".")[0]
    siblings = [k for k in known if k.rpartition(".")[0] == section]
    return "; known fields: " + ", ".join(f"config.{k}" for k in siblings or known)
