"""What a config may say: every field, its default, and what it may be set to."""

import ast
import dataclasses
import difflib
import importlib.util
import inspect
import math
import pathlib
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from train_jax.models import MODELS, model_fields

# A complete ConfigDict: `FIELDS` says what type each field has, Python cannot.
Config = Any


@dataclasses.dataclass(frozen=True)
class Rule:
    """A test of a value, and the words that say what passes it."""

    passes: Callable[[Any], bool]
    allowed: str


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def _integer(low: int, high: float = math.inf) -> Rule:
    def passes(value):
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        return is_integer and low <= value <= high

    in_words = f", at least {low}" if high == math.inf else f" in [{low}, {high}]"
    return Rule(passes, f"an integer{in_words}")


def _number(low: float, high: float = math.inf, *, high_open: bool = False) -> Rule:
    def passes(value):
        if not _is_number(value) or value < low:
            return False
        return value < high if high_open else value <= high

    end = f"{high})" if high_open else f"{high}]"
    in_words = f"in [{low}, {end}" if high < math.inf else f"at least {low}"
    return Rule(passes, f"a number {in_words}")


def _one_of(*values: str) -> Rule:
    return Rule(lambda value: value in values, "one of " + ", ".join(values))


def _or_none(rule: Rule) -> Rule:
    return Rule(lambda v: v is None or rule.passes(v), f"{rule.allowed}, or None")


_BOOLEAN = Rule(lambda value: isinstance(value, bool), "True or False")
_TEXT = Rule(lambda v: isinstance(v, str) and v != "", "a string that is not empty")
_NUMBERS = Rule(
    lambda v: isinstance(v, tuple | list) and len(v) > 0 and all(map(_is_number, v)),
    "a tuple of numbers, one for each channel",
)
_POSITIVE_NUMBERS = Rule(
    lambda v: _NUMBERS.passes(v) and all(x > 0 for x in v),
    "a tuple of positive numbers, one for each channel",
)

# Field → (default, rule). The fields of `model` are those of the module itself.
FIELDS: dict[str, tuple[Any, Rule]] = {
    "model.name": ("vit", _one_of(*MODELS)),
    "dataset.name": ("digits", _TEXT),
    "dataset.train_split": ("train[:90%]", _TEXT),
    "dataset.val_split": ("train[90%:]", _TEXT),
    "dataset.test_split": ("test", _TEXT),
    "dataset.data_dir": (None, _or_none(_TEXT)),
    "dataset.manual_dir": (None, _or_none(_TEXT)),
    "dataset.mean": (None, _or_none(_NUMBERS)),
    "dataset.std": (None, _or_none(_POSITIVE_NUMBERS)),
    "augment.crop_padding": (0, _integer(0)),
    "augment.flip": (False, _BOOLEAN),
    "augment.mixup_alpha": (0.0, _number(0)),
    "augment.cutmix_alpha": (0.0, _number(0)),
    "optimizer.name": ("adamw", _one_of("adamw", "adam", "sgd")),
    "optimizer.learning_rate": (1e-3, _number(0)),
    "optimizer.schedule": ("cosine", _one_of("constant", "cosine", "linear")),
    "optimizer.warmup_epochs": (0.0, _number(0)),
    "optimizer.weight_decay": (0.0, _number(0)),
    "optimizer.decay": ("kernels", _one_of("kernels", "all")),
    "optimizer.clip_norm": (None, _or_none(_number(0))),
    "optimizer.momentum": (0.9, _number(0, 1, high_open=True)),
    "optimizer.b1": (0.9, _number(0, 1, high_open=True)),
    "optimizer.b2": (0.999, _number(0, 1, high_open=True)),
    "optimizer.eps": (1e-8, _number(0)),
    "batch_size": (128, _integer(1)),
    "eval_batch_size": (256, _integer(1)),
    "accumulation_steps": (1, _integer(1)),
    "num_epochs": (10, _integer(1)),
    "num_steps": (None, _or_none(_integer(1))),
    "label_smoothing": (0.0, _number(0, 1, high_open=True)),
    "ema_decay": (None, _or_none(_number(0, 1, high_open=True))),
    "dtype": ("float32", _one_of("float32", "bfloat16")),
    "seed": (0, _integer(0, 2**31 - 1)),
    "num_seeds": (1, _integer(1, 1024)),
    "fsdp": (False, _BOOLEAN),
    "debug_nans": (False, _BOOLEAN),
    "checkpoint.every_epochs": (1, _integer(1)),
    "checkpoint.keep": (2, _integer(1)),
}

# What an optimiser has no use for.
_UNUSED = {"adamw": ["momentum"], "adam": ["momentum"], "sgd": ["b1", "b2", "eps"]}

# The fields that `sweep` may give several values: those that a compiled step can take
# as arguments. `config.sweep.optimizer.learning_rate` is one run for each value.
SWEEPABLE = (
    "optimizer.learning_rate",
    "optimizer.weight_decay",
    "optimizer.clip_norm",
    "optimizer.momentum",
    "optimizer.b1",
    "optimizer.b2",
    "optimizer.eps",
    "label_smoothing",
    "ema_decay",
)

# What a mistake in a config file, which is a program, is likely to raise.
_FILE_FAULTS = (
    ArithmeticError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
)


def load_config(path: str, overrides: Mapping[str, str]) -> Config:
    """Read a config file and turn it into a complete, valid config.

    Args:
        path: Python file that defines `get_config()`.
        overrides: dotted field name → the text of its new value.

    Returns:
        A locked ConfigDict that has every field.

    Raises:
        ValueError: naming the file or the field, the value, and what is allowed.
    """
    config = read_config_file(path, "get_config")
    if not isinstance(config, ConfigDict | dict):
        raise ValueError(
            f"--config {path!r}: get_config() must return a ConfigDict or a dict, got "
            f"{type(config).__name__}"
        )
    fields: Any = config
    given = {field: _parse(text) for field, text in overrides.items()}
    return resolve(flatten(fields) | given)


def resolve(given: Mapping[str, Any]) -> Config:
    """Complete the given fields with the defaults, and check each of them.

    Args:
        given: dotted field name → value.

    Raises:
        ValueError: see `load_config`.
    """
    rules = dict(FIELDS)
    name = given.get("model.name", FIELDS["model.name"][0])
    _check("model.name", name, FIELDS["model.name"][1])
    for field, parameter in model_fields(name).items():
        rules[f"model.{field}"] = (parameter.default, _rule_of(parameter))

    swept = {k: v for k, v in given.items() if k.startswith("sweep.")}
    for field in given:
        if field not in rules and field not in swept:
            raise ValueError(f"config.{field} is unknown{_suggest(field, rules)}")
    complete = {}
    for field, (default, rule) in rules.items():
        value = given.get(field, default)
        if value is inspect.Parameter.empty:
            raise ValueError(
                f"config.{field} is missing: model {name!r} needs it, {rule.allowed}"
            )
        _check(field, value, rule)
        complete[field] = tuple(value) if isinstance(value, list) else value
    for field, values in swept.items():
        if values is not None:
            complete[field] = _check_sweep(field, values, rules)
            optimizer = complete["optimizer.name"]
            if field.removeprefix("sweep.optimizer.") in _UNUSED[optimizer]:
                raise ValueError(
                    f"config.{field} would change nothing: config.optimizer.name is "
                    f"{optimizer!r}"
                )
    return _nest(complete).lock()


def flatten(config: ConfigDict | dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Map every dotted field name of a config to its value."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict | dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def read_config_file(path: str, name: str) -> Any:
    """Run a config file and return what it defines under a name.

    Args:
        path: the file.
        name: of a constant, or of a function, which is called.

    Raises:
        ValueError: if the file cannot be run, or has no such name.
    """
    if not pathlib.Path(path).is_file():
        raise ValueError(f"--config must name a readable file, got {path!r}")
    spec = importlib.util.spec_from_file_location("_config", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"--config must name a Python file (.py), got {path!r}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        value = getattr(module, name)
        return value() if callable(value) else value
    except _FILE_FAULTS as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(f"--config {path!r} could not be read: {reason}") from error


def _parse(text: str) -> Any:
    """Read a value from the command line: a Python literal, or else a string."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _nest(flat: Mapping[str, Any]) -> ConfigDict:
    """Turn dotted field names into sections."""
    nested: dict[str, Any] = {"sweep": {}}
    for field, value in flat.items():
        *sections, key = field.split(".")
        section = nested
        for name in sections:
            section = section.setdefault(name, {})
        section[key] = value
    return ConfigDict(nested)


def _check_sweep(
    sweep: str, values: Any, rules: Mapping[str, tuple[Any, Rule]]
) -> tuple[Any, ...]:
    """Make sure that a field can be swept, and over these values."""
    field = sweep.removeprefix("sweep.")
    if field not in SWEEPABLE:
        raise ValueError(
            f"config.{field} cannot be swept in one program; those that can: "
            + ", ".join(SWEEPABLE)
        )
    rule = rules[field][1]
    is_sequence = isinstance(values, tuple | list) and len(values) > 0
    if not is_sequence or not all(v is not None and rule.passes(v) for v in values):
        raise ValueError(
            f"config.{sweep} must be a tuple of values, each of them "
            f"{rule.allowed.removesuffix(', or None')}, got {values!r}"
        )
    if len(set(values)) < len(values):
        raise ValueError(f"config.{sweep} must have different values, got {values!r}")
    return tuple(values)


def _check(field: str, value: Any, rule: Rule) -> None:
    if not rule.passes(value):
        raise ValueError(f"config.{field} must be {rule.allowed}, got {value!r}")


def _rule_of(parameter: inspect.Parameter) -> Rule:
    """Turn a module field's annotation into a rule; its range is the module's."""
    annotation = parameter.annotation
    if isinstance(annotation, types.UnionType):
        inner = next(t for t in typing.get_args(annotation) if t is not type(None))
        return _or_none(_rule_of(parameter.replace(annotation=inner)))
    if annotation is bool:
        return _BOOLEAN
    if annotation is int:
        return _integer(1)
    if annotation is float:
        return _number(0)
    if annotation is str:
        return _TEXT
    raise TypeError(f"no rule for field {parameter.name!r} of type {annotation}")


def _suggest(field: str, known: Mapping[str, Any]) -> str:
    """Name the closest known field, or the fields of the same section."""
    section, _, key = field.rpartition(".")
    siblings = [k for k in known if k.rpartition(".")[0] == section]
    for candidates, cutoff in ((siblings, 0.7), (list(known), 0.8)):
        names = {k.rpartition(".")[2]: k for k in candidates}
        close = difflib.get_close_matches(key, names, n=1, cutoff=cutoff)
        if close:
            return f"; did you mean config.{names[close[0]]}?"
    return "; known fields: " + ", ".join(f"config.{k}" for k in siblings or known)
