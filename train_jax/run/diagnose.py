"""Find the first array of a training step that is not finite (NaN or infinity)."""

import contextlib
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from train_jax.devices import sharding
from train_jax.learning.state import TrainState
from train_jax.learning.step import Batch, loss_of_batch
from train_jax.run.epoch import Trainer
from train_jax.run.runs import Runs

Named = tuple[str, Any]


def repeat_and_explain(
    trainer: Trainer,
    state: TrainState,
    failed_step: int,
    *,
    model: nn.Module,
    runs: Runs,
) -> str:
    """Repeat the steps up to one that failed; say which array is not finite first.

    Args:
        trainer: takes the steps.
        state: that of a checkpoint before; is donated.
        failed_step: the step in which the loss was not finite, from 1.
        model: the module.
        runs: the runs of the state.
    """
    key_data = jax.tree.map(jax.random.key_data, runs.keys["steps"])
    key_data = sharding.fetch(key_data, runs.mesh)
    # The step before may have had a finite loss and a gradient that was not.
    for step in range(max(state.steps_done, failed_step - 2), failed_step):
        state = trainer.advance(state, step)
        with contextlib.closing(trainer.feed):
            ((_, data),) = trainer.feed(step, 1)
        states, (examples, index) = sharding.fetch((state, data), runs.mesh)
        for run, run_name in enumerate(runs.names):
            state_of_run = runs.select(states, run)
            key = jax.random.wrap_key_data(runs.select(key_data, run))
            batch, dropout_key = trainer.next_batch(
                jnp.asarray(state_of_run.step),
                tuple(map(jnp.asarray, examples)),
                jnp.asarray(runs.select(index, run)),
                key,
            )
            name = find_first_nonfinite(model, state_of_run, batch, dropout_key)
            if name is not None:
                name += f" ({run_name})" if len(runs) > 1 else ""
                return f"; in step {step + 1} the first that is not finite is {name}"
    return "; when it is repeated, all of it is finite"


def find_first_nonfinite(
    model: nn.Module, state: TrainState, batch: Batch, dropout_key: jax.Array
) -> str | None:
    """Repeat the next step of a run, and look at its arrays.

    Args:
        model: the module.
        state: that of one run, before the step that fails.
        batch: that of the step.
        dropout_key: likewise.

    Returns:
        The name of the first array with a NaN or an infinity: of the parameters, the
        batch, each layer's output, the loss, the gradients; None if all are finite.
    """
    for name, array in _arrays(model, state, batch, dropout_key):
        if not np.isfinite(array).all():
            return name
    return None


def _arrays(
    model: nn.Module, state: TrainState, batch: Batch, dropout_key: jax.Array
) -> Iterator[Named]:
    """Compute a step's arrays, in order."""
    yield from _leaves("parameter", state.params)
    yield from _leaves("running statistic", state.batch_stats)
    for number, array in enumerate(jax.tree.leaves(batch)):
        yield f"array {number} of the batch", array
    names: list[str] = []

    def loss(params: Any) -> tuple[jax.Array, list[jax.Array]]:
        outputs: list[jax.Array] = []

        def record(next_fun, args, kwargs, context):
            output = next_fun(*args, **kwargs)
            if context.method_name == "__call__" and isinstance(output, jax.Array):
                names.append("/".join(context.module.path) or "the model")
                outputs.append(output)
            return output

        with nn.intercept_methods(record):
            value, _ = loss_of_batch(
                model,
                params,
                state.batch_stats,
                batch,
                dropout_key,
                label_smoothing=state.label_smoothing,
            )
        return value, outputs

    # Compiled, as in training: operation by operation other numbers may overflow.
    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, outputs), grads = gradient(state.params)
    for name, output in zip(names, outputs, strict=True):
        yield f"output of {name}", output
    yield "the loss", value
    yield from _leaves("gradient of", grads)


def _leaves(kind: str, tree: Any) -> Iterator[Named]:
    """Name the arrays of a tree."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield f"{kind} {jax.tree_util.keystr(path, simple=True, separator='/')}", leaf
