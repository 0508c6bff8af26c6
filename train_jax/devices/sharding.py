"""How batches and the training state lie on the devices."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

PyTree = Any

RUN_AXIS, DATA_AXIS = "run", "data"


def make_mesh(num_runs: int = 1, *, devices: Sequence[Any] | None = None) -> Mesh:
    """Lay out devices: first over independent runs, what is left over the batch.

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
    """Each device holds its share of the batch, the leading axis."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def replicated(mesh: Mesh) -> NamedSharding:
    """Each device holds all of the array."""
    return NamedSharding(mesh, PartitionSpec())


def state_sharding(mesh: Mesh, state: PyTree, *, num_runs: int, fsdp: bool) -> PyTree:
    """Each device holds its runs' states: all of them, or its share.

    Args:
        mesh: the devices.
        state: concrete or abstract; with more than one run, every array leads with
            the run axis.
        num_runs: number of runs.
        fsdp: whether the largest axis of each array that the devices of a run can
            share evenly is shared among them (fully sharded data parallelism, ZeRO,
            arXiv:1910.02054).

    Returns:
        A sharding for each array. Scalars are everywhere, so that every process can
        read them.
    """
    num_devices = mesh.shape[DATA_AXIS]
    lead = [RUN_AXIS] if num_runs > 1 else []

    def layout(leaf: Any) -> NamedSharding:
        shape = leaf.shape[len(lead) :]
        if not shape:
            return replicated(mesh)
        axes: list[str | None] = [None] * len(shape)
        divisible = [i for i, size in enumerate(shape) if size % num_devices == 0]
        if fsdp and divisible:
            axes[max(divisible, key=lambda i: shape[i])] = DATA_AXIS
        return NamedSharding(mesh, PartitionSpec(*lead, *axes))

    return jax.tree.map(layout, state)


def put(tree: PyTree, layout: NamedSharding) -> PyTree:
    """Lay numpy arrays that every process has out over the devices of all of them."""

    def put_leaf(x: Any) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, layout, lambda index: x[index])

    return jax.tree.map(put_leaf, tree)


def fetch(tree: PyTree, mesh: Mesh) -> PyTree:
    """Bring arrays, wherever their parts lie, to the host as numpy arrays."""
    gather = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))
    return jax.device_get(gather(tree))
