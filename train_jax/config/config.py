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

import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict
from ml_collections.config_dict import RequiredValueError

from train_jax.config.models import MODELS, model_fields
from train_jax.data import canonical_name
from train_jax.devices.folders import local_path

# A complete ConfigDict: `FIELDS` says what type each field has, Python cannot.
Config = Any


@dataclasses.dataclass(frozen=True)
class Rule:
    """A test of a value, and the words that say what passes it."""

    passes: Callable[[Any], bool]
    allowed: str


# The positive numbers that float32 knows.
_SMALLEST, _LARGEST = (float(getattr(np.finfo("f4"), x)) for x in ("tiny", "max"))

# Steps are counted in int32.
MOST_STEPS = 2**31 - 1


def _is_number(value: Any) -> bool:
    """Whether it is a number that is finite in float32, which all of them become."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) <= _LARGEST


def _integer(low: int, high: float = math.inf) -> Rule:
    def passes(value):
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        return is_integer and low <= value <= high

    in_words = f", at least {low}" if high == math.inf else f" in [{low}, {high}]"
    return Rule(passes, f"an integer{in_words}")


def _number(low: float, *, below: float = math.inf, most: float = math.inf) -> Rule:
    """A number from `low` to `most`, and below `below` in float32 as well."""

    def passes(value):
        if not _is_number(value) or not low <= value <= most:
            return False
        return bool(np.float32(value) < below)

    end = f", {below})" if below < math.inf else f", {most}]"
    in_words = f"at least {low}" if below == most else f"in [{low:g}{end}"
    return Rule(passes, f"a number {in_words}")


# Zero, or what float32 rounds to zero, would turn something off without a word.
_POSITIVE = Rule(lambda v: _is_number(v) and v >= _SMALLEST, "a number above 0")


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
    lambda v: _NUMBERS.passes(v) and all(map(_POSITIVE.passes, v)),
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
    "dataset.allow_overlap": (False, _BOOLEAN),
    "augment.crop_padding": (0, _integer(0)),
    "augment.flip": (False, _BOOLEAN),
    "augment.mixup_alpha": (0.0, _number(0)),
    "augment.cutmix_alpha": (0.0, _number(0)),
    "optimizer.name": ("adamw", _one_of("adamw", "adam", "sgd")),
    "optimizer.learning_rate": (1e-3, _POSITIVE),
    "optimizer.schedule": ("cosine", _one_of("constant", "cosine", "linear")),
    "optimizer.warmup_epochs": (0.0, _number(0)),
    "optimizer.weight_decay": (0.0, _number(0)),
    "optimizer.decay": ("kernels", _one_of("kernels", "all")),
    # With a lower norm Adam's eps, with a higher eps any gradient, is all that counts.
    "optimizer.clip_norm": (None, _or_none(_number(1e-3))),
    "optimizer.momentum": (0.9, _number(0, below=1)),
    "optimizer.b1": (0.9, _number(0, below=1)),
    "optimizer.b2": (0.999, _number(0, below=1)),
    "optimizer.eps": (1e-8, _number(_SMALLEST, most=1)),
    "batch_size": (128, _integer(1)),
    "eval_batch_size": (256, _integer(1)),
    "accumulation_steps": (1, _integer(1)),
    "num_epochs": (10, _integer(1, MOST_STEPS)),
    "num_steps": (None, _or_none(_integer(1, MOST_STEPS))),
    "label_smoothing": (0.0, _number(0, below=1)),
    "ema_decay": (None, _or_none(_number(0, below=1))),
    "dtype": ("float32", _one_of("float32", "bfloat16")),
    "seed": (0, _integer(0, 2**31 - 1)),
    "num_seeds": (1, _integer(1, 1024)),
    "fsdp": (False, _BOOLEAN),
    "debug_nans": (False, _BOOLEAN),
    "checkpoint.every_epochs": (1, _integer(1)),
    "checkpoint.every_steps": (None, _or_none(_integer(1))),
    "checkpoint.every_minutes": (None, _or_none(_POSITIVE)),
    "checkpoint.keep": (2, _integer(1)),
    "test_checkpoint": ("last", _one_of("last", "best")),
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
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


def load_config(path: str, overrides: Mapping[str, str]) -> Config:
    """Read a config file and turn it into a complete, valid config.

    Args:
        path: Python file that defines `get_config()`; FILE.py:ARGUMENT calls
            `get_config(ARGUMENT)`.
        overrides: dotted field name → the text of its new value. Fields that refer to
            one of these (`ConfigDict.get_ref`) follow it.

    Returns:
        A locked ConfigDict that has every field.

    Raises:
        ValueError: naming the file or the field, the value, and what is allowed.
    """
    config: Any = read_config_file(path, "get_config")
    if not isinstance(config, ConfigDict | dict):
        raise ValueError(
            f"--config {path!r}: get_config() must return a ConfigDict or a dict, got "
            f"{type(config).__name__}"
        )
    if isinstance(config, dict | FrozenConfigDict):
        try:
            config = ConfigDict(dict(config))
        except (TypeError, ValueError) as error:
            raise ValueError(f"--config {path!r}: {error}") from error
    given = {field: _parse(text) for field, text in overrides.items()}
    for field, value in given.items():
        if field in FIELDS:
            _check(field, value, FIELDS[field][1])
    with config.unlocked(), config.ignore_type():
        # What is no value of a known field is refused, by its name, in `resolve`.
        refused = {k: v for k, v in given.items() if not _override(config, k, v)}
    return resolve(flatten(config) | refused)


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
    complete["dataset.name"] = canonical_name(complete["dataset.name"])
    for field, values in swept.items():
        if values is not None:
            complete[field] = _check_sweep(field, values, rules)
            optimizer = complete["optimizer.name"]
            if field.removeprefix("sweep.optimizer.") in _UNUSED[optimizer]:
                raise ValueError(
                    f"config.{field} would change nothing: config.optimizer.name is "
                    f"{optimizer!r}"
                )
    _check_together(complete)
    return _nest(complete).lock()


def _check_together(fields: Mapping[str, Any]) -> None:
    """Raise ValueError for fields that do not fit together, whatever the data are."""
    warmup_epochs, num_epochs = fields["optimizer.warmup_epochs"], fields["num_epochs"]
    if fields["num_steps"] is None and warmup_epochs >= num_epochs:
        raise ValueError(
            "config.optimizer.warmup_epochs must be shorter than the training, got "
            f"{warmup_epochs} of {num_epochs} epochs"
        )
    rate, decay = (
        max(fields.get(f"sweep.{field}", (fields[field],)))
        for field in ("optimizer.learning_rate", "optimizer.weight_decay")
    )
    if rate * decay >= 1:
        raise ValueError(
            "config.optimizer.weight_decay × config.optimizer.learning_rate must be "
            "below 1, the share of the parameters that a step takes away, got "
            f"{decay} × {rate}"
        )


def flatten(config: ConfigDict | dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Map every dotted field name of a config to its value.

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
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def read_config_file(path: str, name: str) -> Any:
    """Run a config file and return what it defines under a name.

    Args:
        path: the file, or FILE.py:ARGUMENT.
        name: of a constant, or of a function, which is called, with the argument if
            there is one.

    Raises:
        ValueError: if the file cannot be run, or has no such name.
    """
    file, *argument = split_argument(path)
    if not _is_file(local_path(file, "--config")):
        raise ValueError(f"--config must name a readable file, got {path!r}")
    spec = importlib.util.spec_from_file_location(
        "_config", local_path(file, "--config")
    )
    if spec is None or spec.loader is None:
        raise ValueError(f"--config must name a Python file (.py), got {path!r}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        value = getattr(module, name)
        return value(*argument) if callable(value) else value
    except _FILE_FAULTS as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(f"--config {path!r} could not be read: {reason}") from error


def split_argument(path: str) -> list[str]:
    """Split FILE.py:ARGUMENT, as ml_collections does: [file] or [file, argument]."""
    file, colon, argument = path.partition(".py:")
    return [f"{file}.py", argument] if colon else [path]


def _is_file(path: pathlib.Path) -> bool:
    """Whether there is such a file; a name that no file could have is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


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
    if rule.passes(value):
        return
    remark = ""
    if isinstance(value, float):
        with np.errstate(over="ignore", under="ignore"):
            rounded = float(np.float32(value))
        # Rounded to one of these it may be out of a range that it is in as written.
        if rounded in (0, 1, math.inf) and rounded != value:
            remark = f" (in float32: {rounded:g})"
    raise ValueError(f"config.{field} must be {rule.allowed}, got {value!r}{remark}")


# Beyond these, sizes overflow, and building the model takes for ever.
_MOST_BLOCKS, _LARGEST_SIZE, _LARGEST_RATIO = 1024, 2**16, 1024


def _rule_of(parameter: inspect.Parameter) -> Rule:
    """Turn a module field's annotation into a rule; how fields fit is the module's."""
    annotation, name = parameter.annotation, parameter.name
    if isinstance(annotation, types.UnionType):
        inner = next(t for t in typing.get_args(annotation) if t is not type(None))
        return _or_none(_rule_of(parameter.replace(annotation=inner)))
    if annotation is bool:
        return _BOOLEAN
    if annotation is int:
        return _integer(1, _MOST_BLOCKS if name.endswith("depth") else _LARGEST_SIZE)
    if annotation is float and name.endswith("rate"):
        return _number(0, below=1)
    if annotation is float and name.endswith("epsilon"):
        return _number(_SMALLEST, most=1)
    if annotation is float and name.endswith("ratio"):
        return _number(0, most=_LARGEST_RATIO)
    if annotation is float:
        return _number(0)
    if annotation is str:
        return _TEXT
    raise TypeError(f"no rule for field {name!r} of type {annotation}")


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
