"""Find out which array of a training step is the first that is not finite."""

from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from train_jax.devices import sharding
from train_jax.learning.state import TrainState
from train_jax.learning.step import batch_of_step, epoch_order, loss_of_batch
from train_jax.run.experiment import Experiment

Named = tuple[str, Any]


def find_first_nonfinite(experiment: Experiment, state: TrainState) -> str | None:
    """Repeat the next step, and look at its arrays.

    Args:
        experiment: what is trained.
        state: that before the step that fails.

    Returns:
        The name of the first array with a NaN or an infinity: of the parameters, the
        batch, each layer's output, the loss, the gradients; None if all are finite. Of
        several runs, that of the first run that has one.
    """
    states = sharding.fetch(state, experiment.mesh)
    keys = sharding.fetch(
        tuple(jax.random.key_data(experiment.key(s)) for s in ("order", "steps")),
        experiment.mesh,
    )
    for run, name in enumerate(experiment.runs.names):
        order_key, step_key = map(
            jax.random.wrap_key_data, experiment.runs.take(keys, run)
        )
        arrays = _arrays(
            experiment, experiment.runs.take(states, run), order_key, step_key
        )
        for array_name, array in arrays:
            if not np.isfinite(array).all():
                is_alone = len(experiment.runs) == 1
                return array_name if is_alone else f"{array_name} ({name})"
    return None


def _arrays(
    experiment: Experiment, state: TrainState, order_key: jax.Array, key: jax.Array
) -> Iterator[Named]:
    """Compute a step's arrays, in order."""
    yield from _leaves("parameter", state.params)
    yield from _leaves("running statistic", state.batch_stats)
    config = experiment.config
    epoch = int(state.step) // experiment.steps_per_epoch
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    batch, dropout_key = batch_of_step(
        experiment.task.make_batch,
        jnp.asarray(state.step),
        tuple(map(jnp.asarray, experiment.train.examples)),
        epoch_order(order_key, epoch, len(experiment.train)),
        key,
        batch_size=config.batch_size,
        batch_sharding=here,
    )
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
                experiment.model,
                config.label_smoothing,
                params,
                state.batch_stats,
                batch,
                dropout_key,
            )
        return value, outputs

    # Compiled, as in training: operation by operation other numbers may overflow.
    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, outputs), grads = gradient(state.params)
    for name, output in zip(names, outputs, strict=True):
        yield f"output of {name}", output
    yield "the loss", value
    yield from _leaves("gradient of", grads)


def _leaves(what: str, tree: Any) -> Iterator[Named]:
    """Name the arrays of a tree."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield f"{what} {'/'.join(key.key for key in path)}", leaf
