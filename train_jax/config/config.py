"""Complete and check a config; read one from a file and the command line."""

import ast
import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict
from ml_collections.config_dict import RequiredValueError

from train_jax.config.fields import SECTIONS, TABLE, Config
from train_jax.config.files import read_config_file
from train_jax.config.groups import resolve_groups, suggest
from train_jax.config.models import MODELS
from train_jax.config.optimizer_fields import GroupConfig
from train_jax.config.options import Option
from train_jax.config.rules import check
from train_jax.config.signatures import (
    all_options,
    model_options,
    optimizer_options,
)
from train_jax.data import canonical_name
from train_jax.learning.optim import OPTIMIZERS


def load_config(path: str, overrides: Mapping[str, str]) -> Config:
    """Read a config file and turn it into a complete, valid config.

    Args:
        path: Python file that defines `get_config()`, or the name of a bundled config;
            FILE.py:ARGUMENT calls `get_config(ARGUMENT)`.
        overrides: dotted field name → the text of its new value. Fields that refer to
            one of these (`ConfigDict.get_ref`) follow it.

    Raises:
        ValueError: naming the file or the field, the value, and what is allowed.
    """
    config: Any = read_config_file(path, "get_config")
    _check_type(config, f"--config {path!r}: get_config() must return")
    given = {field: _parse(text) for field, text in overrides.items()}
    for field, value in given.items():
        if field in TABLE:
            check(field, value, TABLE[field].rule)
    if isinstance(config, Config):
        return resolve(to_json(config) | given)
    try:
        config = _to_config_dict(config)
    except (TypeError, ValueError) as error:
        raise ValueError(f"--config {path!r}: {error}") from error
    with config.unlocked(), config.ignore_type():
        # What is no value of a known field is refused, by its name, in `resolve`.
        refused = {k: v for k, v in given.items() if not _override(config, k, v)}
    return resolve(_flatten(config) | refused)


def from_config_dict(config: ConfigDict | dict[str, Any] | Config) -> Config:
    """Complete and check what a `get_config()` returns.

    Raises:
        ValueError: naming the field, the value, and what is allowed.
    """
    _check_type(config, "config must be")
    if isinstance(config, Config):
        return resolve(to_json(config))
    return resolve(_flatten(_to_config_dict(config)))


def _check_type(config: Any, must: str) -> None:
    """Raise ValueError for what holds no fields."""
    if not isinstance(config, ConfigDict | dict | Config):
        kind = type(config).__name__
        raise ValueError(f"{must} a ConfigDict or a dict, got {kind}")


def resolve(given: Mapping[str, Any]) -> Config:
    """Complete the given fields with the defaults, and check each of them.

    Args:
        given: dotted field name → value, as `to_json` makes it.

    Raises:
        ValueError: naming the field, the value, and what is allowed.
    """
    names = {}
    for section in ("model", "optimizer"):
        field = f"{section}.name"
        names[section] = given.get(field, TABLE[field].default)
        check(field, names[section], TABLE[field].rule)
    options = all_options(**names)
    for field in given:
        is_grouped = field.startswith("groups.")
        if not is_grouped and field.removeprefix("sweep.") not in options:
            prefix = "sweep." if field.startswith("sweep.") else ""
            known = [f"{prefix}{name}" for name in options]
            raise ValueError(
                f"config.{field} is unknown"
                + (_owners(field, names) or suggest(field, known))
            )
    values, sweep = {}, {}
    for field, option in options.items():
        value = given.get(field, option.default)
        if value is dataclasses.MISSING:
            raise ValueError(
                f"config.{field} is missing: model {names['model']!r} needs it, "
                f"{option.rule.allowed}"
            )
        check(field, value, option.rule)
        values[field] = tuple(value) if isinstance(value, list) else value
        if given.get(f"sweep.{field}") is not None:
            sweep[field] = _check_sweep(field, given[f"sweep.{field}"], options)
    values["dataset.name"] = canonical_name(values["dataset.name"])
    config = _build(values, sweep, resolve_groups(given, values))
    _check_together(config)
    return config


def to_json(config: Config) -> dict[str, Any]:
    """Map each dotted field name to its value, as JSON has it; see `resolve`."""

    def walk(value: Any, field: str) -> dict[str, Any]:
        if dataclasses.is_dataclass(value):
            value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            value |= value.pop("arguments", {})
        if not isinstance(value, Mapping):
            return {field: list(value) if isinstance(value, tuple) else value}
        dotted: dict[str, Any] = {}
        for key, inner in value.items():
            dotted |= walk(inner, f"{field}.{key}" if field else key)
        return dotted

    return walk(config, "")


def _build(
    values: Mapping[str, Any],
    sweep: Mapping[str, Any],
    groups: Mapping[str, GroupConfig],
) -> Config:
    """Put checked values into the dataclasses."""
    sections = {}
    for section, its_class in SECTIONS.items():
        known = {field.name for field in dataclasses.fields(its_class)}
        own: dict[str, Any] = {"arguments": {}} if "arguments" in known else {}
        for field, value in values.items():
            name = field.removeprefix(f"{section}.")
            if name != field:
                (own if name in known else own["arguments"])[name] = value
        sections[section] = its_class(**own)
    rest = {field: value for field, value in values.items() if "." not in field}
    return Config(**sections, **rest, sweep=sweep, groups=groups)


def _check_together(config: Config) -> None:
    """Raise ValueError for fields that do not fit together, whatever the data are."""
    updates = {"optimizer": config.optimizer}
    updates |= {f"groups.{name}": group for name, group in config.groups.items()}
    for section, update in updates.items():
        num_epochs = getattr(update, "num_epochs", None) or config.num_epochs
        if config.num_steps is None and update.warmup_epochs >= num_epochs:
            raise ValueError(
                f"config.{section}.warmup_epochs must be shorter than the training, "
                f"got {update.warmup_epochs} of {num_epochs} epochs"
            )
        rate, decay = (
            max(config.sweep.get(f"{section}.{name}", (getattr(update, name),)))
            for name in ("learning_rate", "weight_decay")
        )
        if rate * decay >= 1:
            raise ValueError(
                f"config.{section}.weight_decay × config.{section}.learning_rate must "
                "be below 1, the share of the parameters that a step takes away, got "
                f"{decay} × {rate}"
            )
    for update in updates.values():
        # Their updates depend on whole arrays.
        is_whole = update.name in ("adafactor", "lamb", "sm3")
        if config.model.arguments.get("scan") and is_whole:
            raise ValueError(
                f"config.model.scan must be False for the optimiser {update.name!r}, "
                "which would treat the stacked parameters of all blocks as one array, "
                "got True"
            )
    keeps_norm = any(update.arguments.get("keep_norm") for update in updates.values())
    if config.optimizer.layer_decay is not None and keeps_norm:
        raise ValueError(
            "config.optimizer.layer_decay must be None where a kernel's norm is kept "
            f"(keep_norm), got {config.optimizer.layer_decay}"
        )
    if config.dataset.val_split is None and config.test_checkpoint == "best":
        raise ValueError(
            "config.test_checkpoint must be 'last' where config.dataset.val_split is "
            "None, got 'best'"
        )


def _check_sweep(
    field: str, values: Any, options: Mapping[str, Option]
) -> tuple[float, ...]:
    """Make sure that a field can be swept, and over these values."""
    if not options[field].sweepable:
        raise ValueError(
            f"config.{field} cannot be swept in one program; those that can: "
            + ", ".join(name for name, option in options.items() if option.sweepable)
        )
    rule = options[field].rule
    is_sequence = isinstance(values, tuple | list) and len(values) > 0
    if not is_sequence or not all(v is not None and rule.passes(v) for v in values):
        raise ValueError(
            f"config.sweep.{field} must be a tuple of values, each of them "
            f"{rule.allowed.removesuffix(', or None')}, got {values!r}"
        )
    if len(set(values)) < len(values):
        raise ValueError(
            f"config.sweep.{field} must have different values, got {values!r}"
        )
    return tuple(values)


def _to_config_dict(config: Any) -> ConfigDict:
    """Turn a dict, or what is frozen, into a ConfigDict that can be changed."""
    if isinstance(config, dict | FrozenConfigDict):
        return ConfigDict(dict(config))
    return config


def _flatten(config: ConfigDict | dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Map every dotted field name of nested sections to its value.

    Raises:
        ValueError: if a field is a placeholder that was not filled, or refers to
            something that it cannot be computed from.
    """
    flat = {}
    for key in config:
        try:
            value = config[key]
        except RequiredValueError as error:
            raise ValueError(f"config.{prefix}{key} must be given") from error
        except (ArithmeticError, TypeError, ValueError) as error:
            raise ValueError(
                f"config.{prefix}{key} could not be computed: {error}"
            ) from error
        if isinstance(value, ConfigDict | dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _override(config: ConfigDict, field: str, value: Any) -> bool:
    """Set a field, in sections that are made if need be; False if it can be none."""
    *sections, key = field.split(".")
    section: Any = config
    for name in sections:
        if name not in section:
            section[name] = ConfigDict()
        try:
            section = section[name]
        except RequiredValueError:
            return False
        if not isinstance(section, ConfigDict):
            return False
    if isinstance(value, dict):
        return False
    section[key] = value
    return True


def _parse(text: str) -> Any:
    """Read a value from the command line: a Python literal, or else a string."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _owners(field: str, names: Mapping[str, str]) -> str:
    """Name the models or optimisers that have a field which the chosen one has not."""
    section, _, key = field.removeprefix("sweep.").partition(".")
    known = {"model": MODELS, "optimizer": OPTIMIZERS}.get(section, {})
    list_options = model_options if section == "model" else optimizer_options
    owners = [name for name in known if key in list_options(name)]
    if not owners:
        return ""
    chosen = names[section]
    return (
        f": {section} {chosen!r} has {', '.join(list_options(chosen))}; {key} is an "
        f"argument of {', '.join(owners)}"
    )
