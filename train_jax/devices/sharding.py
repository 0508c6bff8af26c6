"""Mesh and shardings of batches and of the training state."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

PyTree = Any

RUN_AXIS, DATA_AXIS = "run", "data"


def make_mesh(num_runs: int = 1, *, devices: Sequence[Any] | None = None) -> Mesh:
    """Make a mesh: devices are divided among the runs, those of a run share its batch.

    Args:
        num_runs: number of runs; each row of devices gets the same number of them.
        devices: all of them if not given.
    """
    devices = jax.devices() if devices is None else devices
    rows = math.gcd(num_runs, len(devices))
    return jax.make_mesh(
        (rows, len(devices) // rows),
        (RUN_AXIS, DATA_AXIS),
        axis_types=(AxisType.Auto,) * 2,
        devices=devices,
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Shard the leading axis, the batch, over the devices of a run."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def replicated(mesh: Mesh) -> NamedSharding:
    """Replicate an array on all devices."""
    return NamedSharding(mesh, PartitionSpec())


def shard_state(state: PyTree, mesh: Mesh, *, num_runs: int, fsdp: bool) -> PyTree:
    """Give an abstract training state its shardings.

    Each device holds the states of its runs, or its share of them.

    Args:
        state: shapes and dtypes; with more than one run, every array leads with the
            run axis.
        mesh: the devices.
        num_runs: number of runs.
        fsdp: whether the largest axis of each array that the devices of a run can
            share evenly is shared among them (fully sharded data parallelism, ZeRO,
            arXiv:1910.02054).

    Returns:
        The abstract state with shardings. Scalars are replicated, so that every
        process can read them.
    """
    num_devices = mesh.shape[DATA_AXIS]
    lead = [RUN_AXIS] if num_runs > 1 else []

    def shard(leaf: Any) -> jax.ShapeDtypeStruct:
        axes: list[str | None] = [None] * len(leaf.shape[len(lead) :])
        sizes = dict(enumerate(leaf.shape[len(lead) :]))
        divisible = [axis for axis, size in sizes.items() if size % num_devices == 0]
        if fsdp and divisible:
            axes[max(divisible, key=sizes.__getitem__)] = DATA_AXIS
        spec = PartitionSpec(*lead, *axes) if axes else PartitionSpec()
        layout = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout)

    return jax.tree.map(shard, state)


def describe(tree: PyTree, layout: NamedSharding) -> PyTree:
    """Describe arrays that are laid out in one way: shapes, dtypes and sharding."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout), tree
    )


def put(tree: PyTree, layout: NamedSharding) -> PyTree:
    """Put numpy arrays, which every process has, on the devices of all processes."""

    def put_leaf(x: Any) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, layout, lambda index: x[index])

    return jax.tree.map(put_leaf, tree)


def fetch(tree: PyTree, mesh: Mesh) -> PyTree:
    """Bring sharded arrays to the host, as numpy arrays."""
    gather = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))
    return jax.device_get(gather(tree))
