"""Optimisers and learning rate schedules, made of optax."""

from typing import Any

import jax
import optax


def make_schedule(
    name: str, *, learning_rate: float, total_steps: int, warmup_steps: int = 0
) -> optax.Schedule:
    """Make a schedule: linear warm-up from 0, then constant, cosine or linear to 0.

    Args:
        name: "constant", "cosine" or "linear".
        learning_rate: the peak, reached at the end of the warm-up.
        total_steps: length of the training, warm-up included.
        warmup_steps: length of the warm-up.

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
        "constant": lambda: optax.constant_schedule(learning_rate),
        "cosine": lambda: optax.cosine_decay_schedule(learning_rate, decay_steps),
        "linear": lambda: optax.linear_schedule(learning_rate, 0.0, decay_steps),
    }
    if name not in schedules:
        raise ValueError(f"schedule must be one of {', '.join(schedules)}, got {name}")
    if warmup_steps == 0:
        return schedules[name]()
    warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    return optax.join_schedules([warmup, schedules[name]()], [warmup_steps])


def decay_mask(params: Any) -> Any:
    """Mark the parameters that weight decay applies to: the kernels, nothing else.

    Biases, the scales of normalisation layers and embeddings set a level, not a
    capacity; they are left alone.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key == "kernel", params
    )


def make_optimizer(
    name: str,
    schedule: optax.Schedule,
    *,
    weight_decay: float = 0.0,
    decay: str = "kernels",
    clip_norm: float | None = None,
    momentum: float = 0.9,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """Chain clipping, the optimiser and its weight decay.

    Args:
        name: "adamw" (decoupled weight decay), "adam" or "sgd" (Nesterov momentum;
            with both, weight decay is added to the gradient, as an L2 penalty).
        schedule: step → learning rate.
        weight_decay: the coefficient.
        decay: "kernels", see `decay_mask`, or "all" parameters.
        clip_norm: largest global norm of the gradient, before weight decay.
        momentum: of sgd.
        b1: of adam and adamw; decay of the gradient's average.
        b2: of adam and adamw; decay of the squared gradient's average.
        eps: of adam and adamw.

    Raises:
        ValueError: if a name is unknown.

    References: AdamW, arXiv:1711.05101, algorithm 2.
    """
    if decay not in ("kernels", "all"):
        raise ValueError(f"decay must be one of kernels, all, got {decay}")
    mask = decay_mask if decay == "kernels" else None
    penalty = optax.add_decayed_weights(weight_decay, mask)
    moments = optax.scale_by_adam(b1, b2, eps)
    rules = {
        "adamw": [moments, penalty],
        "adam": [penalty, moments],
        "sgd": [penalty, optax.trace(momentum, nesterov=True)],
    }
    if name not in rules:
        raise ValueError(f"optimizer must be one of {', '.join(rules)}, got {name}")
    clip = [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]
    return optax.chain(*clip, *rules[name], optax.scale_by_learning_rate(schedule))
