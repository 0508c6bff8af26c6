"""Find the first array of a training step that is not finite (NaN or infinity)."""

import contextlib
import operator
from collections.abc import Iterable, Iterator
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from train_jax.config.fields import Config
from train_jax.devices import sharding
from train_jax.learning.batch import KEY_IMPL, Batch, split_batch
from train_jax.learning.state import TrainState
from train_jax.learning.step import Loss
from train_jax.output.checkpoint import Checkpoints
from train_jax.run.checkpointing import load_state
from train_jax.run.optimizer import make_loss
from train_jax.run.runs import Runs
from train_jax.run.setup import Parts
from train_jax.run.trainer import Trainer

Named = tuple[str, Any]


def diagnose(
    config: Config, parts: Parts, checkpoints: Checkpoints, failed_step: int
) -> str:
    """Explain a step whose loss was not finite, if that is asked for."""
    if not config.debug_nans:
        return ""
    model = parts.model
    if hasattr(model, "remat"):  # what is traced inside cannot be looked at
        model = model.clone(remat=False)
    return explain_nonfinite(
        parts.trainer,
        load_state(checkpoints, parts.abstract_state, parts.init_state),
        failed_step,
        make_loss(config, model),
        runs=parts.runs,
        accumulation_steps=config.accumulation_steps,
    )


def explain_nonfinite(
    trainer: Trainer,
    state: TrainState,
    failed_step: int,
    loss: Loss,
    *,
    runs: Runs,
    accumulation_steps: int = 1,
) -> str:
    """Repeat the steps up to one that failed; say which array is not finite first.

    Args:
        trainer: takes the steps.
        state: that of a checkpoint before; is donated.
        failed_step: the step in or after which something was not finite, from 1.
        loss: see `find_first_nonfinite`.
        runs: the runs of the state.
        accumulation_steps: see `make_train_step`.
    """
    # The step before may have had a finite loss and a gradient that was not.
    first = max(state.steps_done, failed_step - 2)
    if first >= failed_step:
        return ""  # the newest checkpoint is of this step
    for step in range(first, failed_step):
        state = trainer.advance(state, step)
        with contextlib.closing(trainer.feed):
            batches = trainer.next_batch(state)
        states, batches = sharding.fetch((state, batches), runs.mesh)
        for run, run_name in enumerate(runs.names):
            batch, key_data = runs.select(batches, run)
            name = find_first_nonfinite(
                loss,
                runs.select(states, run),
                batch,
                jax.random.wrap_key_data(key_data, impl=KEY_IMPL),
                accumulation_steps=accumulation_steps,
            )
            if name is not None:
                return _describe(f"in step {step + 1}", name, run_name, runs)
    state = sharding.fetch(trainer.advance(state, failed_step), runs.mesh)
    for run, run_name in enumerate(runs.names):
        name = _first_nonfinite(_kept(runs.select(state, run)))
        if name is not None:
            return _describe(f"after step {failed_step}", name, run_name, runs)
    return "; when it is repeated, all of it is finite"


def _describe(when: str, name: str, run_name: str, runs: Runs) -> str:
    run = f" ({run_name})" if len(runs) > 1 else ""
    return f"; {when} the first that is not finite is {name}{run}"


def find_first_nonfinite(
    loss: Loss,
    state: TrainState,
    batch: Batch,
    dropout_key: jax.Array,
    *,
    accumulation_steps: int = 1,
) -> str | None:
    """Repeat the next step of a run, and look at its arrays.

    What is traced inside `nn.remat` and `nn.scan` cannot be looked at from outside:
    give the loss of a model without `remat`; blocks under `scan` have no outputs here.

    Args:
        loss: `loss_of_batch` with its model and options.
        state: that of one run, before the step that fails.
        batch: that of the step.
        dropout_key: likewise.
        accumulation_steps: see `make_train_step`.

    Returns:
        The name of the first array with a NaN or an infinity: of the parameters, the
        batch, each layer's output, the loss, the gradients; None if all are finite.
    """
    arrays = _arrays(loss, state, batch, dropout_key, accumulation_steps)
    return _first_nonfinite(arrays)


def _first_nonfinite(arrays: Iterable[Named]) -> str | None:
    return next((name for name, x in arrays if not np.isfinite(x).all()), None)


def _kept(state: TrainState) -> Iterator[Named]:
    """Name the arrays of a state that the model is made of."""
    yield from _leaves("parameter", state.params)
    yield from _leaves("running statistic", state.batch_stats)
    yield from _leaves("average of", state.ema)


def _arrays(
    loss: Loss,
    state: TrainState,
    batch: Batch,
    dropout_key: jax.Array,
    accumulation_steps: int,
) -> Iterator[Named]:
    """Compute a step's arrays, in order."""
    yield from _kept(state)
    for number, array in enumerate(jax.tree.leaves(batch)):
        yield f"array {number} of the batch", array
    parts = [(batch, dropout_key)]
    if accumulation_steps > 1:
        split = split_batch(batch, accumulation_steps)
        parts = [
            (
                jax.tree.map(operator.itemgetter(number), split),
                jax.random.fold_in(dropout_key, number),
            )
            for number in range(accumulation_steps)
        ]
    for part, key in parts:
        arrays, batch_stats = _arrays_of_loss(loss, state, part, key)
        yield from arrays
        state = state.replace(batch_stats=batch_stats)


def _arrays_of_loss(
    loss: Loss, state: TrainState, batch: Batch, key: jax.Array
) -> tuple[list[Named], Any]:
    """Compute the loss of a batch or a part of it: its arrays, the new statistics."""
    names: list[str] = []

    def loss_and_outputs(params: Any) -> tuple[jax.Array, tuple[list[jax.Array], Any]]:
        outputs: list[jax.Array] = []

        def record(next_fun, args, kwargs, context):
            output = next_fun(*args, **kwargs)
            is_inside = "blocks" in context.module.path
            is_call = context.method_name == "__call__" and not is_inside
            if is_call and isinstance(output, jax.Array):
                names.append("/".join(context.module.path) or "the model")
                outputs.append(output)
            return output

        with nn.intercept_methods(record):
            value, (_, batch_stats) = loss(
                params,
                state.batch_stats,
                batch,
                key,
                label_smoothing=state.label_smoothing,
            )
        return value, (outputs, batch_stats)

    # Compiled, as in training: operation by operation other numbers may overflow.
    gradient = jax.jit(jax.value_and_grad(loss_and_outputs, has_aux=True))
    (value, (outputs, batch_stats)), grads = gradient(state.params)
    arrays = [
        *((f"output of {n}", x) for n, x in zip(names, outputs, strict=True)),
        ("the loss", value),
        *_leaves("gradient of", grads),
    ]
    return arrays, batch_stats


def _leaves(kind: str, tree: Any) -> Iterator[Named]:
    """Name the arrays of a tree."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield f"{kind} {jax.tree_util.keystr(path, simple=True, separator='/')}", leaf
