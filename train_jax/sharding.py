"""How a batch and the training state lie on the devices."""

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def make_mesh() -> Mesh:
    """Line up all devices along the axis `data`."""
    devices = jax.devices()
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Each device holds its share of the batch, the leading axis."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """Each device holds all of the array."""
    return NamedSharding(mesh, PartitionSpec())
