"""Mesh and shardings of batches and of the training state."""

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
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
    arranged = _arrange(devices, (rows, len(devices) // rows))
    return Mesh(arranged, (RUN_AXIS, DATA_AXIS), axis_types=(AxisType.Auto,) * 2)


def _arrange(devices: Sequence[Any], shape: tuple[int, int]) -> np.ndarray:
    """Arrange devices so that neighbours have a fast connection.

    Those of a TPU slice are arranged along its links, all others slice by slice. Each
    node of GPUs is a slice of its own.
    """
    slices = [getattr(device, "slice_index", 0) for device in devices]
    if devices[0].platform == "tpu" and len(set(slices)) == 1:
        # It can't arrange the two cores of older chips.
        with contextlib.suppress(AssertionError, NotImplementedError, ValueError):
            return mesh_utils.create_device_mesh(
                shape, devices, allow_split_physical_axes=True
            )
    order = sorted(range(len(devices)), key=lambda i: (slices[i], devices[i].id))
    return np.array([devices[i] for i in order]).reshape(shape)


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
    lead = [RUN_AXIS] if num_runs > 1 else []

    def shard(leaf: Any) -> jax.ShapeDtypeStruct:
        shape = leaf.shape[len(lead) :]
        axes = _shared_axes(shape, mesh) if fsdp else (None,) * len(shape)
        spec = PartitionSpec(*lead, *axes) if axes else PartitionSpec()
        sharding = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(shard, state)


def _shared_axes(shape: Sequence[int], mesh: Mesh) -> tuple[str | None, ...]:
    """Name the mesh axis of each axis of an array that the devices of a run share."""
    axes: list[str | None] = [None] * len(shape)
    sizes = dict(enumerate(shape))
    num_devices = mesh.shape[DATA_AXIS]
    divisible = [axis for axis, size in sizes.items() if size % num_devices == 0]
    if divisible:
        axes[max(divisible, key=sizes.__getitem__)] = DATA_AXIS
    return tuple(axes)


def gather_kernels(model: nn.Module, mesh: Mesh) -> nn.Module:
    """Let each product and convolution of a model gather its kernel for itself alone.

    Of the blocks that the devices of a run share, each device then holds one kernel at
    a time. The backward pass gathers the kernels again, and leaves each device its
    share of their gradients.
    """
    changes: dict[str, Any] = {}
    if (convolve := getattr(model, "conv_general_dilated", None)) is not None:
        changes["conv_general_dilated"] = _gathering(convolve, mesh)
    if (multiply := getattr(model, "dot_general", None)) is not None:
        gathering = _gathering(multiply, mesh)

        def dot_general(lhs: Any, rhs: Any, numbers: Any, *args: Any, **kwargs: Any):
            _, (batch_axes, _) = numbers
            # With batch axes it is one of two activations.
            product = multiply if batch_axes else gathering
            return product(lhs, rhs, numbers, *args, **kwargs)

        changes["dot_general"] = dot_general
    return model.clone(**changes)


def gather_rest(params: PyTree, mesh: Mesh) -> PyTree:
    """Gather the parameters that `gather_kernels` does not: all but blocks' kernels."""

    def gather(path: Any, x: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if "block" in name and name.endswith("kernel"):
            return x
        return jax.lax.with_sharding_constraint(x, replicated(mesh))

    return jax.tree_util.tree_map_with_path(gather, params)


def _gathering(multiply: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """Let a function like `jax.lax.dot_general` gather the kernel it is given."""

    @jax.custom_vjp
    def gather(kernel: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(kernel, replicated(mesh))

    def scatter(_: None, gradient: jax.Array) -> tuple[jax.Array]:
        sharding = NamedSharding(
            mesh, PartitionSpec(*_shared_axes(gradient.shape, mesh))
        )
        return (jax.lax.with_sharding_constraint(gradient, sharding),)

    gather.defvjp(lambda kernel: (gather(kernel), None), scatter)

    def gathering(lhs: jax.Array, rhs: jax.Array, *args: Any, **kwargs: Any) -> Any:
        # Kept for the backward pass are the activations and this device's share.
        @jax.checkpoint
        def apply(lhs: jax.Array, rhs: jax.Array) -> Any:
            return multiply(lhs, gather(rhs), *args, **kwargs)

        return apply(lhs, rhs)

    return gathering


def abstract(tree: PyTree, sharding: NamedSharding) -> PyTree:
    """Return the shapes and dtypes of arrays, with the sharding of all of them."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
    )


def put(tree: PyTree, sharding: NamedSharding) -> PyTree:
    """Put numpy arrays, which every process has, on the devices of all processes."""

    def put_leaf(x: Any) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put_leaf, tree)


def local_rows(num_rows: int, sharding: NamedSharding) -> np.ndarray:
    """List the rows of a batch that the devices of this process hold, in order."""
    index_of = sharding.addressable_devices_indices_map((num_rows,))
    rows = np.arange(num_rows)
    return np.unique(np.concatenate([rows[index] for index in index_of.values()]))


def put_rows(tree: PyTree, num_rows: int, sharding: NamedSharding) -> PyTree:
    """Put the rows of a batch that this process has on its devices.

    Args:
        tree: arrays of those rows, see `local_rows`.
        num_rows: number of rows of the batch, over all processes.
        sharding: sharding of the batch.
    """

    def put_leaf(x: np.ndarray) -> jax.Array:
        shape = (num_rows, *x.shape[1:])
        return jax.make_array_from_process_local_data(sharding, x, shape)

    return jax.tree.map(put_leaf, tree)


def fetch(tree: PyTree, mesh: Mesh) -> PyTree:
    """Bring sharded arrays to the host, as numpy arrays.

    One at a time, as a device may not have room for all of them.
    """
    gather = jax.jit(lambda x: x, out_shardings=replicated(mesh))

    def fetch_one(x: jax.Array) -> np.ndarray:
        return jax.device_get(x if x.is_fully_addressable else gather(x))

    return jax.tree.map(fetch_one, tree)
