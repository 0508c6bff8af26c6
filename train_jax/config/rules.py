"""Rules for values of the config: a predicate, and the words for the error."""

import dataclasses
import math
import re
import types
import typing
from collections.abc import Callable
from typing import Any

import numpy as np

# The positive numbers that float32 knows.
_SMALLEST, _LARGEST = (float(getattr(np.finfo("f4"), x)) for x in ("tiny", "max"))

# Beyond these, sizes overflow, and building the model takes for ever.
_MOST_BLOCKS, _LARGEST_SIZE, _LARGEST_RATIO = 1024, 2**16, 1024


@dataclasses.dataclass(frozen=True)
class Rule:
    """A test of a value, and the words that say what passes it."""

    passes: Callable[[Any], bool]
    allowed: str


def check(field: str, value: Any, rule: Rule) -> None:
    """Raise ValueError, naming the field and what is allowed, if a value is not."""
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


def integer(low: int, high: float = math.inf) -> Rule:
    """Allow the integers from `low` to `high`."""

    def passes(value: Any) -> bool:
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        return is_integer and low <= value <= high

    in_words = f", at least {low}" if high == math.inf else f" in [{low}, {high}]"
    return Rule(passes, f"an integer{in_words}")


def integers(count: int) -> Rule:
    """Allow a tuple of so many integers above 0."""
    each = integer(1, _LARGEST_SIZE)
    return Rule(
        lambda v: (
            isinstance(v, tuple | list) and len(v) == count and all(map(each.passes, v))
        ),
        f"a tuple of {count} integers in [1, {_LARGEST_SIZE}]",
    )


def _is_number(value: Any) -> bool:
    """Whether it is a number that is finite in float32, which all of them become."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) <= _LARGEST


def number(low: float, *, below: float = math.inf, most: float = math.inf) -> Rule:
    """Allow the numbers from `low` to `most`, and below `below` in float32 as well."""

    def passes(value: Any) -> bool:
        if not _is_number(value) or not low <= value <= most:
            return False
        return bool(np.float32(value) < below)

    end = f", {below})" if below < math.inf else f", {most}]"
    in_words = f"at least {low}" if below == most else f"in [{low:g}{end}"
    return Rule(passes, f"a number {in_words}")


def one_of(*values: str | bool | None) -> Rule:
    """Allow some strings, and None, True or False if it is one of the values."""
    return Rule(
        lambda v: (v is None or isinstance(v, str | bool)) and v in values,
        "one of " + ", ".join(map(str, values)),
    )


def or_none(rule: Rule) -> Rule:
    """Allow None as well."""
    return Rule(lambda v: v is None or rule.passes(v), f"{rule.allowed}, or None")


BOOLEAN = Rule(lambda value: isinstance(value, bool), "True or False")
TEXT = Rule(lambda v: isinstance(v, str) and v != "", "a string that is not empty")
# Zero, or what float32 rounds to zero, would turn something off without a word.
POSITIVE = Rule(lambda v: _is_number(v) and v >= _SMALLEST, "a number above 0")
CHANNEL_MEANS = Rule(
    lambda v: (
        isinstance(v, tuple | list)
        and len(v) > 0
        and all(_is_number(x) and 0 <= x <= 1 for x in v)
    ),
    "a tuple of numbers in [0, 1], one for each channel",
)
MEAN = Rule(
    lambda v: one_of("pixel").passes(v) or CHANNEL_MEANS.passes(v),
    f"{CHANNEL_MEANS.allowed}, 'pixel'",
)
CHANNEL_STDS = Rule(
    lambda v: CHANNEL_MEANS.passes(v) and all(map(POSITIVE.passes, v)),
    "a tuple of numbers in (0, 1], one for each channel",
)

STEPS = Rule(
    lambda v: (
        isinstance(v, tuple | list)
        and len(v) == 2
        and all(isinstance(x, int) and not isinstance(x, bool) for x in v)
        and 0 <= v[0] < v[1]
    ),
    "two numbers of steps, the first one smaller",
)
AREA = Rule(
    lambda v: (
        isinstance(v, tuple | list)
        and len(v) == 2
        and all(map(POSITIVE.passes, v))
        and v[0] <= v[1] <= 1
    ),
    "two numbers in (0, 1], the first one not larger",
)
SHARES = Rule(
    lambda v: (
        isinstance(v, tuple | list)
        and all(_is_number(x) and 0 < x < 1 for x in v)
        and sorted(set(v)) == list(v)
    ),
    "a tuple of increasing numbers between 0 and 1",
)


def _is_pattern(value: Any) -> bool:
    """Whether it is a regular expression."""
    try:
        return TEXT.passes(value) and bool(re.compile(value))
    except re.error:
        return False


PATTERN = Rule(_is_pattern, "a regular expression")


def rule_of(name: str, annotation: Any) -> Rule:
    """Make the rule of a field or an argument from its annotation and its name.

    Raises:
        TypeError: for a type that no config can hold.
    """
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        inner = [t for t in typing.get_args(annotation) if t is not types.NoneType]
        return or_none(rule_of(name, inner[0]))
    if typing.get_origin(annotation) is typing.Literal:
        return one_of(*typing.get_args(annotation))
    if annotation is bool:
        return BOOLEAN
    if annotation is str:
        return TEXT
    if annotation is int:
        least = 0 if name == "num_registers" else 1
        return integer(least, _MOST_BLOCKS if name.endswith("depth") else _LARGEST_SIZE)
    if typing.get_origin(annotation) is tuple:
        return integers(len(typing.get_args(annotation)))
    if annotation is not float:
        raise TypeError(f"no rule for {name!r} of type {annotation}")
    decays = ("b1", "b2", "b3", "momentum", "rho", "decay")
    if name in decays or name.endswith("rate"):
        return number(0, below=1)
    if name.endswith(("eps", "epsilon")):
        return number(_SMALLEST, most=1)
    return number(0, most=_LARGEST_RATIO) if name.endswith("ratio") else number(0)
