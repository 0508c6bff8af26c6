"""Optimisers and learning rate schedules, made of optax.

Every number of an optimiser lies in its state (`optax.inject_hyperparams`), so that
runs that are trained in one program can each have their own.
"""

from typing import Any, Literal

import chex
import jax
import optax

Array = jax.Array

SCHEDULES = ("constant", "cosine", "linear")


def make_schedule(
    name: str, *, total_steps: int, warmup_steps: int = 0
) -> optax.Schedule:
    """Make a schedule: linear warm-up from 0, then constant, cosine or linear to 0.

    Args:
        name: "constant", "cosine" or "linear".
        total_steps: length of the training, warm-up included.
        warmup_steps: length of the warm-up.

    Returns:
        A function of the step: the share of the peak learning rate, in [0, 1].

    Raises:
        ValueError: if the name is unknown or the warm-up leaves no step.
    """
    decay_steps = total_steps - warmup_steps
    if decay_steps < 1:
        raise ValueError(
            "the warm-up must be shorter than the training, got "
            f"{warmup_steps} of {total_steps} steps"
        )
    schedules = {
        "constant": lambda: optax.constant_schedule(1.0),
        "cosine": lambda: optax.cosine_decay_schedule(1.0, decay_steps),
        "linear": lambda: optax.linear_schedule(1.0, 0.0, decay_steps),
    }
    if name not in schedules:
        raise ValueError(f"schedule must be one of {', '.join(schedules)}, got {name}")
    if warmup_steps == 0:
        return schedules[name]()
    warmup = optax.linear_schedule(0.0, 1.0, warmup_steps)
    return optax.join_schedules([warmup, schedules[name]()], [warmup_steps])


def decay_mask(params: Any) -> Any:
    """Mark the parameters that weight decay applies to: the kernels, nothing else.

    Biases, the scales of normalisation layers and embeddings set a level, not a
    capacity; they are left alone.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key == "kernel", params
    )


def adam(
    *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Scale gradients by their moments.

    Args:
        b1: decay rate of the first moment.
        b2: decay rate of the second moment.
        eps: added to the root of the second moment.

    References: arXiv:1412.6980, algorithm 1.
    """
    return optax.scale_by_adam(b1, b2, eps)


def sgd(
    *, momentum: float = 0.9, nesterov: bool = True
) -> optax.GradientTransformation:
    """Accumulate gradients with momentum.

    Args:
        momentum: decay rate of the accumulated gradient.
        nesterov: whether to look ahead by one step.
    """
    return optax.trace(momentum, nesterov)


# With adamw, weight decay is decoupled (arXiv:1711.05101, algorithm 2). With the others
# it is added to the gradient, as an L2 penalty.
OPTIMIZERS = {"adamw": adam, "adam": adam, "sgd": sgd}


def make_optimizer(
    name: str,
    schedule: optax.Schedule,
    *,
    learning_rate: float,
    weight_decay: float = 0.0,
    decay: Literal["kernels", "all"] = "kernels",
    clip_norm: float | None = None,
    **arguments: Any,
) -> optax.GradientTransformation:
    """Chain clipping, the optimiser, weight decay and the learning rate.

    Args:
        name: "adamw", "adam" or "sgd".
        schedule: step → share of the peak learning rate.
        learning_rate: the peak.
        weight_decay: the coefficient.
        decay: "kernels", see `decay_mask`, or "all" parameters.
        clip_norm: largest global norm of the gradient, before weight decay.
        **arguments: of the optimiser, see `adam` and `sgd`.

    Raises:
        ValueError: if a name is unknown.
    """
    if decay not in ("kernels", "all"):
        raise ValueError(f"decay must be one of kernels, all, got {decay}")
    if name not in OPTIMIZERS:
        raise ValueError(
            f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {name}"
        )
    inject = optax.inject_hyperparams
    rule = inject(OPTIMIZERS[name])(**arguments)
    penalty = inject(optax.add_decayed_weights, static_args="mask")(
        weight_decay, mask=decay_mask if decay == "kernels" else None
    )
    clip = [] if clip_norm is None else [inject(optax.clip_by_global_norm)(clip_norm)]
    ordered = [rule, penalty] if name == "adamw" else [penalty, rule]
    descent = inject(_descend)(peak=learning_rate, share=schedule)
    return optax.chain(*clip, *ordered, descent)


def _descend(peak: Array, share: Array) -> optax.GradientTransformation:
    """Step down the gradient by a share of the peak learning rate."""
    return optax.scale(-peak * share)


def last_learning_rate(opt_state: optax.OptState) -> Array:
    """Read the learning rate of the last step: a scalar, or (R,) of R runs.

    Args:
        opt_state: of `make_optimizer`.
    """
    hyperparams = opt_state[-1].hyperparams  # type: ignore
    peak, share = hyperparams["peak"], hyperparams["share"]
    chex.assert_equal_shape([peak, share])
    return peak * share
