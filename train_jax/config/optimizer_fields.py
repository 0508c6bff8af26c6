"""Config fields of the optimiser and of groups of parameters."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from train_jax.config.options import option
from train_jax.config.rules import PATTERN, POSITIVE, SHARES, number, or_none


@dataclasses.dataclass(frozen=True)
class UpdateConfig:
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
        "(1 / √step), or steps (multiplied by drop_factor at the milestones)",
    )
    cooldown_epochs: float = option(
        0.0,
        "epochs at the end in which the rate is also multiplied by a factor that "
        "falls linearly from 1 to 0",
        number(0),
    )
    milestones: tuple[float, ...] = option(
        (0.5, 0.75),
        "fractions of the training after which the schedule 'steps' multiplies the "
        "rate by drop_factor",
        SHARES,
    )
    drop_factor: float = option(
        0.1, "factor by which 'steps' multiplies the rate", number(0, most=1)
    )
    warmup_epochs: float = option(
        0.0, "epochs of linear warm-up of the learning rate, from 0", number(0)
    )
    weight_decay: float = option(
        0.0,
        "coefficient of weight decay, multiplied by the learning rate as in PyTorch; "
        "decoupled (AdamW) in optimisers that have it, such as adamw and muon, else an "
        "L2 penalty",
        number(0),
        sweepable=True,
    )
    weight_decay_mask: Literal["kernels", "all"] = option(
        "kernels", "which parameters weight decay applies to"
    )
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)


# Schedules whose rate before the end doesn't depend on the training's length.
LENGTH_FREE_SCHEDULES: tuple[str, ...] = ("constant", "rsqrt")
# What a group leaves out of these is as in `optimizer`.
SHARED = {field.name for field in dataclasses.fields(UpdateConfig)} - {"arguments"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupConfig(UpdateConfig):
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

    @property
    def is_frozen(self) -> bool:
        """Whether its parameters are not trained."""
        return not self.learning_rate


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(UpdateConfig):
    """The optimiser: its name, what all of them share, and its own arguments."""

    # With a lower norm Adam's eps, with a higher eps any gradient, is all that counts.
    clip_norm: float | None = option(
        None,
        "gradient clipping: largest global norm of the gradient; None for no clipping",
        or_none(number(1e-3)),
        sweepable=True,
    )
    layer_decay: float | None = option(
        None,
        "layer-wise learning rate decay of a ViT: each layer's rate is this factor "
        "times that of the layer above; None for one rate",
        or_none(number(1e-3, most=1)),
    )
