"""Check arguments: ValueError with the name, what is allowed and the value."""

import dataclasses
from typing import Any

import flax.linen as nn
import numpy as np
from jax.core import Tracer


def check_at_least(minimum: int, **values: float | None) -> None:
    """Reject numbers below a minimum; None, a part that is left out, is allowed.

    Raises:
        ValueError: naming the first of them.
    """
    for name, value in values.items():
        if value is not None and not value >= minimum:
            raise ValueError(f"{name} must be at least {minimum}, got {value}")


def check_positive(**values: float) -> None:
    """Reject numbers that are not above 0.

    Raises:
        ValueError: naming the first of them.
    """
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be greater than 0, got {value}")


def check_num_outputs(num_outputs: int | None, *, num_tokens: int) -> None:
    """Reject fewer than 1 or more outputs than tokens; None, for all, is allowed.

    Raises:
        ValueError: naming it.
    """
    if num_outputs is not None and not 1 <= num_outputs <= num_tokens:
        raise ValueError(
            f"num_outputs must be in [1, {num_tokens}], the number of tokens, or None, "
            f"got {num_outputs}"
        )


def check_positions(trained_1TD: Any, *, num_tokens: int) -> None:
    """Reject position embeddings of another number of tokens; None is allowed.

    Raises:
        ValueError: saying what resizes them.
    """
    if trained_1TD is not None and trained_1TD.shape[1] != num_tokens:
        raise ValueError(
            f"pos_embedding is for {trained_1TD.shape[1]} tokens, but the image makes "
            f"{num_tokens}; for another size vit_jax.weights.fit resizes it"
        )


def check_rate(name: str, rate: float) -> None:
    """Reject a rate of dropout outside [0, 1).

    Raises:
        ValueError: with the name.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"{name} must be in [0, 1), got {rate}")


def check_rates(module: nn.Module) -> None:
    """Reject a rate out of range in any field whose name ends in "rate".

    Raises:
        ValueError: naming the first of them.
    """
    for field in dataclasses.fields(module):
        if field.name.endswith("rate"):
            check_rate(field.name, getattr(module, field.name))


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Reject a value that is none of the choices.

    Raises:
        ValueError: naming them.
    """
    if value not in choices:
        *others, last = map(repr, choices)
        raise ValueError(f"{name} must be {', '.join(others)} or {last}, got {value!r}")


def is_concrete(x: Any) -> bool:
    """Return whether the values can be read: outside jit, and on this host."""
    is_traced = isinstance(x, Tracer)
    return not is_traced and getattr(x, "is_fully_addressable", True)


def check_range(name: str, x: Any, low: int, high: int) -> None:
    """Reject integers outside [low, high], where the values are known.

    Raises:
        ValueError: with the first of them.
    """
    if not is_concrete(x):
        return
    numbers = np.ravel(x)
    outside = numbers[(numbers < low) | (numbers > high)]
    if outside.size:
        raise ValueError(f"{name} must be in [{low}, {high}], got {outside[0]}")
