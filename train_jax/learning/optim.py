"""Optimisers and learning rate schedules, made of optax.

Every number of an optimiser lies in its state (`optax.inject_hyperparams`), so that
runs that are trained in one program can each have their own.
"""

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
import optax

from train_jax.learning import aliases, muon
from train_jax.learning.layer_decay import scale_by_layer

Array = jax.Array

# Name of the group of all parameters that are in no other one.
_REST = ""


SCHEDULES = ("constant", "cosine", "linear", "rsqrt", "steps")


def make_schedule(
    name: str,
    *,
    total_steps: int,
    warmup_steps: int = 0,
    cooldown_steps: int = 0,
    milestones: Sequence[float] = (0.5, 0.75),
    drop_factor: float = 0.1,
) -> optax.Schedule:
    """Make a schedule: linear warm-up from 0, then constant, or falling.

    Args:
        name: "constant"; "cosine" or "linear" to 0; "rsqrt", the reciprocal root of the
            step (arXiv:1706.03762, eq. 3); or "steps".
        total_steps: length of the training, warm-up included.
        warmup_steps: length of the warm-up.
        cooldown_steps: number of the last steps, in which the rate also falls linearly
            to 0 (arXiv:2106.04560, section 3.5).
        milestones: shares of the training, after each of which "steps" multiplies the
            rate by `drop_factor`.
        drop_factor: see `milestones`.

    Returns:
        A function of the step: the share of the peak learning rate, in [0, 1].

    Raises:
        ValueError: beginning with the name of the config's field, if the schedule is
            unknown, the warm-up leaves no step, or the cooldown or a milestone lies
            within it.
    """
    decay_steps = total_steps - warmup_steps
    if decay_steps < 1:
        raise ValueError(
            "warmup_epochs must be shorter than the training, got "
            f"{warmup_steps} of {total_steps} steps; 0 for no warm-up"
        )
    if cooldown_steps > decay_steps:
        raise ValueError(
            "cooldown_epochs must leave room for the warm-up, got "
            f"{cooldown_steps} and {warmup_steps} of {total_steps} steps"
        )
    schedules = {
        "constant": lambda: optax.constant_schedule(1.0),
        "cosine": lambda: optax.cosine_decay_schedule(1.0, decay_steps),
        "linear": lambda: optax.linear_schedule(1.0, 0.0, decay_steps),
        "rsqrt": lambda: _reciprocal_root(max(warmup_steps, 1)),
        "steps": lambda: _steps(
            [round(share * total_steps) for share in milestones],
            drop_factor,
            warmup_steps,
        ),
    }
    if name not in schedules:
        raise ValueError(f"schedule must be one of {', '.join(schedules)}, got {name}")
    schedule = schedules[name]()
    if warmup_steps > 0:
        warmup = optax.linear_schedule(0.0, 1.0, warmup_steps)
        schedule = optax.join_schedules([warmup, schedule], [warmup_steps])
    if cooldown_steps > 0:
        last = optax.linear_schedule(
            1.0, 0.0, cooldown_steps, total_steps - cooldown_steps
        )
        return lambda step: schedule(step) * last(step)
    return schedule


def _steps(boundaries: list[int], factor: float, warmup_steps: int) -> optax.Schedule:
    """Multiply by the factor at each step named, as often as it is named."""
    if any(step < warmup_steps for step in boundaries):
        raise ValueError(
            f"milestones must come after the warm-up of {warmup_steps} steps, got "
            f"{min(boundaries)} steps"
        )
    factors = {
        step - warmup_steps: factor ** boundaries.count(step) for step in boundaries
    }
    return optax.piecewise_constant_schedule(1.0, factors)


def _reciprocal_root(first: int) -> optax.Schedule:
    """Fall with the root of the number of steps, from 1 after the `first` steps on."""
    return lambda step: (first / (first + jnp.maximum(step, 0))) ** 0.5


def adam(
    *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, nesterov: bool = False
) -> optax.GradientTransformation:
    """Scale gradients by their moments.

    Args:
        b1: decay rate of the first moment.
        b2: decay rate of the second moment.
        eps: added to the root of the second moment.
        nesterov: whether to use Nesterov momentum (NAdam).

    References: arXiv:1412.6980, algorithm 1.
    """
    return optax.scale_by_adam(b1, b2, eps, nesterov=nesterov)


def sgd(
    *, momentum: float = 0.9, nesterov: bool = True
) -> optax.GradientTransformation:
    """Accumulate gradients with momentum.

    Args:
        momentum: decay rate of the accumulated gradient.
        nesterov: whether to use Nesterov momentum.
    """
    return optax.trace(momentum, nesterov)


# With adamw, muon and those of optax that have it, weight decay is decoupled
# (arXiv:1711.05101, algorithm 2). With the others it is added to the gradient, as an L2
# penalty.
_OWN = {"adamw": adam, "adam": adam, "sgd": sgd, "muon": muon.muon}
_DECOUPLED = ("adamw", "muon")
# Name → function with its arguments.
OPTIMIZERS = _OWN | {name: aliases.signature_of(name) for name in aliases.NAMES}


def make_update_rule(
    name: str,
    schedule: optax.Schedule,
    *,
    learning_rate: float,
    weight_decay: float = 0.0,
    weight_decay_mask: Literal["kernels", "all"] = "kernels",
    **arguments: Any,
) -> optax.GradientTransformation:
    """Chain an optimiser, weight decay and the learning rate.

    Args:
        name: a key of `OPTIMIZERS`.
        schedule: step → share of the peak learning rate.
        learning_rate: the peak.
        weight_decay: the coefficient.
        weight_decay_mask: what weight decay applies to: "kernels" or "all" parameters.
            Biases, the scales of normalisation layers and the embeddings of positions
            and tokens set a level, not a capacity. A patch embedding is a kernel.
        **arguments: of the optimiser, see `adam`, `sgd`, `muon.muon` and optax.

    Raises:
        ValueError: if a name is unknown.
    """
    if weight_decay_mask not in ("kernels", "all"):
        raise ValueError(
            f"weight_decay_mask must be one of kernels, all, got {weight_decay_mask}"
        )
    if name not in OPTIMIZERS:
        raise ValueError(
            f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {name}"
        )
    inject = optax.inject_hyperparams
    mask = muon.kernel_mask if weight_decay_mask == "kernels" else None
    descent = inject(_descend)(peak=learning_rate, share=schedule)
    if name in aliases.NAMES:
        decay = {"weight_decay": weight_decay, "mask": mask}
        return optax.chain(aliases.make_alias(name, **decay, **arguments), descent)
    last = [muon.keep_norm()] if arguments.pop("keep_norm", False) else []
    function = _OWN[name]
    parameters = inspect.signature(function).parameters
    counts = [k for k, p in parameters.items() if p.annotation is int]
    rule = inject(function, static_args=counts)(**arguments)
    penalty = inject(optax.add_decayed_weights, static_args="mask")(
        weight_decay, mask=mask
    )
    ordered = [rule, penalty] if name in _DECOUPLED else [penalty, rule]
    return optax.chain(*ordered, descent, *last)


def make_optimizer(
    rule: optax.GradientTransformation,
    *,
    clip_norm: float | None = None,
    layer_decay: float | None = None,
    groups: Mapping[str, optax.GradientTransformation] | None = None,
    frozen: Sequence[str] = (),
) -> optax.GradientTransformation:
    """Clip the gradient, and update each group of parameters by its own rule.

    Args:
        rule: of the parameters that are in no group; see `make_update_rule`.
        clip_norm: largest global norm of the gradient, before weight decay; that of the
            frozen parameters does not count.
        layer_decay: see `scale_by_layer`; None for no such decay.
        groups: regular expression → rule. A parameter, such as
            "encoder/block_0/mlp/hidden/kernel", is in the first group whose expression
            matches a part of its path.
        frozen: such expressions of the parameters that are not trained.
    """
    clip = []
    if clip_norm is not None:
        inject = optax.inject_hyperparams(_clip, static_args="frozen")
        clip.append(inject(clip_norm, frozen=tuple(frozen)))
    groups = {**(groups or {}), **dict.fromkeys(frozen, optax.set_to_zero())}
    if groups:
        patterns = tuple(groups)
        rule = optax.partition(
            {**groups, _REST: rule}, lambda params: label_groups(params, patterns)
        )
    layers = [] if layer_decay is None else [scale_by_layer(layer_decay)]
    return optax.chain(*clip, rule, *layers)


def _clip(max_norm: Array, frozen: tuple[str, ...]) -> optax.GradientTransformation:
    """Clip the gradient of the parameters that are trained by its global norm."""

    def update(updates: Any, params: Any = None) -> Any:
        del params
        labels = label_groups(updates, frozen)
        # The gradient of the others is not used, and so it is not computed.
        trained = jax.tree.map(
            lambda label, x: x if label == _REST else jnp.zeros_like(x), labels, updates
        )
        clip = optax.clip_by_global_norm(max_norm)
        return clip.update(trained, optax.EmptyState())[0]

    return optax.stateless(update)


def label_groups(params: Any, patterns: Sequence[str]) -> Any:
    """Find the group of each parameter: a tree of patterns, "" where none matches."""

    def label(path: Any, _: Array) -> str:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return next((p for p in patterns if re.search(p, name)), _REST)

    return jax.tree_util.tree_map_with_path(label, params)


def _descend(peak: Array, share: Array) -> optax.GradientTransformation:
    """Step down the gradient by a share of the peak learning rate."""
    return optax.scale(-peak * share)


def last_learning_rate(opt_state: optax.OptState) -> Array:
    """Read the learning rate of the last step: a scalar, or (R,) of R runs.

    Args:
        opt_state: of `make_optimizer`; of several groups, that of the rest counts.
    """
    states: Any = opt_state
    # What follows the rule has no state.
    rule_state = next(s for s in reversed(states) if s != optax.EmptyState())
    if isinstance(rule_state, optax.transforms.PartitionState):
        rule_state = rule_state.inner_states[_REST].inner_state  # type: ignore
    hyperparams = next(
        s.hyperparams for s in rule_state if "peak" in getattr(s, "hyperparams", ())
    )
    peak, share = hyperparams["peak"], hyperparams["share"]
    chex.assert_equal_shape([peak, share])
    return peak * share
