"""The part of the config's table that says how parameters are updated."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from train_jax.config.options import option
from train_jax.config.rules import PATTERN, POSITIVE, SHARES, number, or_none


@dataclasses.dataclass(frozen=True)
class RuleConfig:
    """How some parameters are updated."""

    # The keys of `optim.OPTIMIZERS`.
    name: Literal[
        "adamw",
        "adam",
        "sgd",
        "muon",
        "adabelief",
        "adadelta",
        "adafactor",
        "adagrad",
        "adamax",
        "adan",
        "lamb",
        "lion",
        "radam",
        "rmsprop",
        "sm3",
        "yogi",
    ] = option("adamw", "which optimiser updates the parameters")
    learning_rate: float = option(
        1e-3, "learning rate after the warm-up", POSITIVE, sweepable=True
    )
    schedule: Literal["constant", "cosine", "linear", "rsqrt", "steps"] = option(
        "cosine",
        "the learning rate after the warm-up: constant, cosine or linear to 0, rsqrt "
        "(1 / √step), or steps (falls at the milestones)",
    )
    cooldown_epochs: float = option(
        0.0,
        "last epochs, in which the rate also falls linearly to 0",
        number(0),
    )
    milestones: tuple[float, ...] = option(
        (0.5, 0.75),
        "shares of the training, after each of which the schedule 'steps' falls",
        SHARES,
    )
    drop_factor: float = option(
        0.1, "what the schedule 'steps' multiplies the rate by", number(0, most=1)
    )
    warmup_epochs: float = option(
        0.0, "epochs in which the learning rate grows from 0", number(0)
    )
    weight_decay: float = option(
        0.0,
        "coefficient of weight decay: decoupled in optimisers that have it, such as "
        "adamw and muon, else an L2 penalty",
        number(0),
        sweepable=True,
    )
    weight_decay_mask: Literal["kernels", "all"] = option(
        "kernels", "which parameters weight decay applies to"
    )
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupConfig(RuleConfig):
    """A group of parameters; what it leaves out is as in `optimizer`.

    `config.groups.NAME` declares it, with any name. No parameter may fit two groups.
    """

    params: str = option(
        dataclasses.MISSING,
        "regular expression; it fits a part of the parameter's path, such as "
        "'encoder/block_0/mlp/hidden/kernel'",
        PATTERN,
    )
    learning_rate: float = option(
        1e-3, "learning rate after the warm-up; 0 freezes the parameters", number(0)
    )
    num_epochs: float | None = option(
        None,
        "length of its schedule, after which its rate is 0; None for the training's",
        or_none(POSITIVE),
    )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(RuleConfig):
    """The optimiser: its name, what all of them share, and its own arguments."""

    # With a lower norm Adam's eps, with a higher eps any gradient, is all that counts.
    clip_norm: float | None = option(
        None,
        "largest global norm of the gradient; None for no clipping",
        or_none(number(1e-3)),
        sweepable=True,
    )
    layer_decay: float | None = option(
        None,
        "factor of the learning rate from each layer of a ViT to the one below it; "
        "None for the same rate in all",
        or_none(number(1e-3, most=1)),
    )
