"""The training step: pure functions, without I/O."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from train_jax.learning.batch import Batch, split_batch
from train_jax.learning.optim import label_groups
from train_jax.learning.state import TrainState

Array = jax.Array
PyTree = Any
Metrics = dict[str, Array]
Loss = Callable[..., tuple[Array, tuple[Metrics, PyTree]]]
TrainStep = Callable[[TrainState, Batch, Array], tuple[TrainState, Metrics]]


def cross_entropy(logits: Array, target: Array) -> Array:
    """Cross-entropy in nats: (B, Y) → float32 (B,), or (B, T, V) → (B, T)."""
    chex.assert_rank(logits, {2, 3})
    chex.assert_equal_shape([logits, target])
    loss = optax.softmax_cross_entropy(logits, target)
    chex.assert_shape(loss, logits.shape[:-1])
    return loss


def make_train_step(
    loss: Loss,
    tx: optax.GradientTransformation,
    *,
    accumulation_steps: int = 1,
    gather_params: Callable[[PyTree], PyTree] = lambda params: params,
) -> TrainStep:
    """Make the pure function (state, batch, key) → (state, metrics).

    Args:
        loss: (params, batch_stats, batch, key, *, label_smoothing) → (loss, (metrics,
            batch_stats)), such as `loss_of_batch` with its model and options. The
            metrics have the names of `TrainState.epoch_sums`: loss and accuracy.
        tx: the optimiser.
        accumulation_steps: the batch is passed through the model in that many parts,
            one after another, and their gradients are averaged.
        gather_params: lays out the parameters for the gradient, if they are laid out
            otherwise between the steps.

    Returns:
        A function of a state, a batch and a key for dropout. Its metrics are means
        over the batch, before the update: `loss`, and `accuracy`, the share of
        examples that are right in every place.
    """
    gradient = jax.grad(loss, has_aux=True)

    def train_step(state: TrainState, batch: Batch, key: Array):
        chex.assert_shape([state.step, state.label_smoothing], ())
        gathered = state.replace(params=gather_params(state.params))
        grads, (metrics, batch_stats) = _accumulate(
            gradient, accumulation_steps, gathered, batch, key
        )
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        new_state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        new_state = new_state.replace(ema=_update_ema(new_state, state.step))
        chex.assert_trees_all_equal_shapes_and_dtypes(new_state, state)
        return new_state, metrics

    return train_step


def _update_ema(state: TrainState, step: Array) -> PyTree | None:
    """Move the averages towards the newest parameters and statistics.

    The decay rate of step t, from 0, is at most (1 + t) / (10 + t), so that the average
    forgets the initial values: 0.999 is reached after 8,990 steps.
    """
    if state.ema is None or state.ema_decay is None:
        return None
    decay = jnp.minimum(state.ema_decay, (1 + step) / (10 + step))
    newest = {"params": state.params, "batch_stats": state.batch_stats}
    return optax.incremental_update(newest, state.ema, 1 - decay)


def loss_of_batch(
    model: nn.Module,
    params: PyTree,
    batch_stats: PyTree,
    batch: Batch,
    key: Array,
    *,
    label_smoothing: Array | float = 0.0,
    frozen: Sequence[str] = (),
    train: bool = True,
) -> tuple[Array, tuple[Metrics, PyTree]]:
    """Compute the mean loss over a batch.

    Args:
        model: takes a batch's inputs and `train`, returns logits like the target.
        params: its parameters.
        batch_stats: BatchNorm's running statistics, or an empty dict.
        batch: inputs, and class probabilities (B, Y) or (B, T, V).
        key: for dropout.
        label_smoothing: share of the target spread evenly over all classes.
        frozen: regular expressions of the parameters whose gradient is not needed.
        train: whether dropout is active, and BatchNorm takes the batch's statistics.

    Returns:
        The loss, a scalar; beside it the metrics and the new running statistics.
    """
    inputs, target = batch
    labels = label_groups(params, tuple(frozen))
    params = jax.tree.map(
        lambda label, x: jax.lax.stop_gradient(x) if label else x, labels, params
    )
    chex.assert_rank(target, {2, 3})
    chex.assert_equal_shape_prefix([*inputs, target], 1)
    logits, updates = model.apply(
        {"params": params, "batch_stats": batch_stats},
        *inputs,
        train=train,
        rngs={"dropout": key},
        mutable=["batch_stats"],
    )
    losses = cross_entropy(logits, optax.smooth_labels(target, label_smoothing))
    hits = logits.argmax(axis=-1) == target.argmax(axis=-1)
    chex.assert_equal_shape([losses, hits])
    hits_B = hits.reshape(len(hits), -1).all(axis=-1)
    loss = losses.mean()
    metrics = {"loss": loss, "accuracy": hits_B.mean()}
    chex.assert_shape([loss, *metrics.values()], ())
    return loss, (metrics, updates.get("batch_stats", {}))


def _accumulate(
    gradient: Callable[..., Any], num_parts: int, state: TrainState, batch: Batch, key
) -> tuple[PyTree, tuple[Metrics, PyTree]]:
    """Average gradients and metrics over the parts of the batch, one after another."""
    gradient = functools.partial(gradient, label_smoothing=state.label_smoothing)
    if num_parts == 1:
        return gradient(state.params, state.batch_stats, batch, key)

    def add_part(carry, part):
        index, part_batch = part
        sums, batch_stats = carry
        grads, (metrics, batch_stats) = gradient(
            state.params, batch_stats, part_batch, jax.random.fold_in(key, index)
        )
        return (jax.tree.map(jnp.add, sums, (grads, metrics)), batch_stats), None

    parts = split_batch(batch, num_parts)
    zeros = jax.tree.map(jnp.zeros_like, (state.params, state.epoch_sums))
    (sums, batch_stats), _ = jax.lax.scan(
        add_part, (zeros, state.batch_stats), (jnp.arange(num_parts), parts)
    )
    grads, metrics = jax.tree.map(lambda x: x / num_parts, sums)
    return grads, (metrics, batch_stats)


def make_next_step(
    train_step: TrainStep,
    next_batch: Callable[..., tuple[Batch, Array]],
    *,
    steps_per_epoch: int,
) -> Callable[..., TrainState]:
    """Make a function that takes the next step of an epoch, whichever that is.

    What a step draws depends on the key and its number alone: a run can go on from any
    state.

    Args:
        train_step: see `make_train_step`.
        next_batch: `batch_of_step` with its functions and options.
        steps_per_epoch: number of steps in an epoch.

    Returns:
        A pure function (state, examples, index, key) → state.
    """

    def next_step(
        state: TrainState, examples: tuple[Array, ...], index: Array, key: Array
    ) -> TrainState:
        chex.assert_shape([state.step, state.finite_steps], ())
        batch, dropout_key = next_batch(state.step, examples, index, key)
        is_first = state.step % steps_per_epoch == 0
        new_state, metrics = train_step(state, batch, dropout_key)
        is_finite = jnp.isfinite(metrics["loss"]) & (state.finite_steps == state.step)
        new_state = new_state.replace(
            finite_steps=state.finite_steps + is_finite,
            epoch_sums=jax.tree.map(
                lambda sum, value: jnp.where(is_first, 0.0, sum) + value,
                state.epoch_sums,
                metrics,
            ),
        )
        chex.assert_trees_all_equal_shapes_and_dtypes(new_state, state)
        return new_state

    return next_step
