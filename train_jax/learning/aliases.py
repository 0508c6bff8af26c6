"""Optimisers of optax, by their names."""

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any

import optax

NAMES = (
    *("adabelief", "adadelta", "adafactor", "adagrad", "adamax", "adan", "lamb"),
    *("lion", "radam", "rmsprop", "sm3", "yogi"),
)
# Arguments that come from elsewhere in the config; optax has two names for some.
_DECAY, _MASK = ("weight_decay", "weight_decay_rate"), ("mask", "weight_decay_mask")
_SHARED = ("learning_rate", *_DECAY, *_MASK)


def signature_of(name: str) -> Callable[..., None]:
    """Make a function with an optimiser's own arguments and its documentation.

    They are its numbers and switches, without rate and weight decay.
    """
    function = getattr(optax, name)
    parameters = []
    for parameter in inspect.signature(function).parameters.values():
        annotation = _type_of(parameter)
        if annotation is not None and parameter.name not in _SHARED:
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters.append(parameter.replace(annotation=annotation, kind=kind))

    def documented(**_: Any) -> None: ...

    documented.__signature__ = inspect.Signature(parameters)  # type: ignore
    documented.__doc__ = function.__doc__
    return documented


def _type_of(parameter: inspect.Parameter) -> Any:
    """Return bool, int, float or float | None; None for anything else."""
    if isinstance(parameter.default, bool):
        return bool
    if parameter.annotation is int:
        return int
    if isinstance(parameter.default, int | float):
        return float
    # `jax.typing.ArrayLike` is printed by its name, or as a union with float.
    is_number = re.search("float|ArrayLike", str(parameter.annotation))
    return float | None if parameter.default is None and is_number else None


def make_alias(
    name: str,
    *,
    weight_decay: float,
    mask: Callable[[Any], Any] | None,
    **arguments: Any,
) -> optax.GradientTransformation:
    """Make an optimiser whose updates go up the gradient and are not yet scaled.

    Its numbers lie in its state, as in `train_jax.learning.optim`.

    Args:
        name: one of `NAMES`.
        weight_decay: where the optimiser has none, it is added to the gradient as an L2
            penalty.
        mask: parameters → which of them decay; None for all.
        **arguments: the optimiser's own.
    """
    function = functools.partial(getattr(optax, name), learning_rate=1.0)
    parameters = inspect.signature(function).parameters
    numbers = {
        key
        for key, p in inspect.signature(signature_of(name)).parameters.items()
        if p.annotation not in (bool, int)
    }
    decay = next((key for key in _DECAY if key in parameters), None)
    if decay is not None:
        numbers.add(decay)
        [masked] = [key for key in _MASK if key in parameters]
        arguments |= {decay: weight_decay, masked: mask}
    static = [key for key in parameters if key not in numbers]
    rule = optax.inject_hyperparams(function, static_args=static)(**arguments)
    upwards = optax.chain(rule, optax.scale(-1.0))
    if decay is not None:
        return upwards
    penalize = optax.inject_hyperparams(optax.add_decayed_weights, static_args="mask")
    return optax.chain(penalize(weight_decay, mask=mask), upwards)
