"""Shuffle the examples of an epoch, and select the batch of each step."""

from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp

Array = jax.Array
# The model's inputs, and the target: class probabilities (B, Y) or (B, T, V).
Batch = tuple[tuple[Array, ...], Array]

# The kind of random keys, whatever the environment's default: these draw the same on
# every device, and for each run of a program as if it were alone.
KEY_IMPL = "threefry2x32"


def epoch_order(key: Array, epoch: Array | int, num_examples: int) -> Array:
    """Shuffle the examples' indices for an epoch: int32 (num_examples,)."""
    chex.assert_rank(epoch, 0)
    epoch_key = jax.random.fold_in(key, epoch)
    order_M = jax.random.permutation(epoch_key, num_examples)
    chex.assert_shape(order_M, (num_examples,))
    return order_M


def select_examples(
    examples: tuple[Array, ...],
    order_M: Array,
    batch_index: Array,
    *,
    batch_size: int,
    batch_sharding: Any,
    shapes: Sequence[tuple[int, ...]],
) -> tuple[tuple[Array, ...], Array]:
    """Select the examples of a batch from a split that is on the device.

    Args:
        examples: the arrays of the whole split, all axes but the first merged: a TPU
            would pad the channels to 128, and copy the split to do so.
        order_M: the order of an epoch's examples.
        batch_index: number of the batch in the epoch, a scalar.
        batch_size: number of examples in a batch, over all devices.
        batch_sharding: sharding of the batch.
        shapes: of one example in each array.

    Returns:
        The arrays of the batch's examples, and their indices, (B,).
    """
    chex.assert_rank([order_M, batch_index], [1, 0])
    chex.assert_equal_shape_prefix([*examples, order_M], 1)
    start = batch_index * batch_size
    index_B = jax.lax.dynamic_slice(order_M, (start,), (batch_size,))
    index_B = jax.lax.with_sharding_constraint(index_B, batch_sharding)
    chex.assert_shape(index_B, (batch_size,))
    selected = tuple(
        array[index_B].reshape(batch_size, *shape)
        for array, shape in zip(examples, shapes, strict=True)
    )
    return selected, index_B


def take_loaded(
    examples: tuple[Array, ...],
    index_B: Array,
    batch_index: Array,
    *,
    look_up: bool = False,
) -> tuple[tuple[Array, ...], Array]:
    """Take the examples of a batch that was loaded; stands in for `select_examples`.

    Args:
        examples: the arrays of the batch's examples.
        index_B: their indices.
        batch_index: number of the batch in the epoch, a scalar.
        look_up: whether the examples are looked up by their row, as those of a split
            are by their index. XLA then compiles what follows in the same way, and
            results agree to the last bit; several devices would gather the batch.
    """
    chex.assert_rank([index_B, batch_index], [1, 0])
    chex.assert_equal_shape_prefix([*examples, index_B], 1)
    if not look_up:
        return examples, index_B
    # Depends on batch_index, or XLA would move it out of the loop over the steps.
    row_B = jnp.arange(len(index_B)) + jnp.minimum(batch_index, 0)
    loaded = tuple(array[row_B] for array in examples)
    chex.assert_trees_all_equal_shapes_and_dtypes(loaded, examples)
    return loaded, index_B


def batch_of_step(
    make_batch: Callable[..., Batch],
    select: Callable[..., tuple[tuple[Array, ...], Array]],
    step: Array,
    examples: tuple[Array, ...],
    index: Array,
    key: Array,
    *,
    steps_per_epoch: int,
) -> tuple[Batch, Array]:
    """Make the batch of a step, and the key of its dropout.

    Args:
        make_batch: the function (key, *examples, index_B=…, epoch=…) → batch.
        select: `select_examples` with its options, or `take_loaded`.
        step: number of the step, from 0.
        examples: the arrays of the split for the former, of the batch for the latter.
        index: the order of the split's examples, or the indices of the batch's.
        key: of the steps.
        steps_per_epoch: number of steps in an epoch.
    """
    chex.assert_rank([step, index], [0, 1])
    chex.assert_equal_shape_prefix([*examples, index], 1)
    batch_key, dropout_key = jax.random.split(jax.random.fold_in(key, step))
    chosen, index_B = select(examples, index, step % steps_per_epoch)
    epoch = step // steps_per_epoch
    batch = make_batch(batch_key, *chosen, index_B=index_B, epoch=epoch)
    chex.assert_tree_shape_prefix(batch, index_B.shape)
    return batch, dropout_key


def split_batch(batch: Batch, num_parts: int) -> Batch:
    """Split a batch into parts, along a new leading axis.

    Part i takes every n-th example from i on, so that each device of a sharded batch
    has its share of every part.
    """
    chex.assert_equal_shape_prefix(jax.tree.leaves(batch), 1)
    parts = jax.tree.map(
        lambda x: jnp.swapaxes(x.reshape(-1, num_parts, *x.shape[1:]), 0, 1), batch
    )
    chex.assert_tree_shape_prefix(parts, (num_parts,))
    return parts
