"""TPU topologies to compile for, and their chips' memory, FLOP/s and bandwidth."""

import dataclasses
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Chip:
    """What an accelerator chip can do at most.

    Attributes:
        memory: bytes.
        flops: operations in bfloat16, a second.
        bandwidth: of its memory, bytes a second.
        link_bandwidth: of all its links to other chips together, bytes a second.
    """

    memory: float
    flops: float
    bandwidth: float
    link_bandwidth: float


# https://cloud.google.com/tpu/docs/system-architecture-tpu-vm
_GIB = 2.0**30
CHIPS = {
    "v4": Chip(32 * _GIB, 275e12, 1228e9, 300e9),
    "v5e": Chip(16 * _GIB, 197e12, 819e9, 200e9),
    "v5p": Chip(95 * _GIB, 459e12, 2765e9, 600e9),
    "v6e": Chip(32 * _GIB, 918e12, 1640e9, 448e9),
}
_FORM = re.compile(r"(?:([1-9]\d*)\*)?(\w+):([1-9]\d*(?:x[1-9]\d*)*)")


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for.

    Attributes:
        devices: they can't run anything.
        chip: what each of them can do; None for virtual CPUs.
    """

    devices: Sequence[Any]
    chip: Chip | None


def make_topology(text: str) -> Topology:
    """Describe devices that need not be here.

    Call it before anything else is done with JAX.

    Args:
        text: "v5e:4x4", a TPU slice; "2*v5e:4x4", two of them; "cpu:8", virtual CPUs.

    Raises:
        ValueError: if there is no such topology, or libtpu is not installed.
    """
    match = _FORM.fullmatch(text)
    known = (*CHIPS, "cpu")
    if match is None or match[2] not in known:
        raise ValueError(
            f"--topology must be KIND:SIZE with a kind of {', '.join(known)}, such as "
            f"v5e:4x4, 2*v5e:4x4 or cpu:8, got {text!r}"
        )
    num_slices, kind, size = match.groups()
    if kind == "cpu":
        if num_slices or not size.isdecimal() or not 1 <= int(size) <= 1024:
            raise ValueError(
                f"--topology cpu: takes a number of CPUs up to 1024, got {text!r}"
            )
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", int(size))
        return Topology(jax.devices(), None)
    num_chips = math.prod(map(int, size.split("x")))
    devices = _find_tpus(text, f"{kind}:{size}", num_chips, int(num_slices or 1))
    chip, per_chip = CHIPS[kind], len(devices) // (num_chips * int(num_slices or 1))
    if per_chip > 1:  # each has its share
        shares = {k: v / per_chip for k, v in dataclasses.asdict(chip).items()}
        chip = Chip(**shares)
    return Topology(devices, chip)


def _find_tpus(text: str, name: str, num_chips: int, num_slices: int) -> Sequence[Any]:
    """Let libtpu describe the devices of slices of that name; see `make_topology`."""
    # Without these libtpu asks the host which TPU it is, and complains.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    # A TPU may be used by one process at a time, but nothing is run here.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    options: dict[str, Any] = {"num_slices": num_slices} if num_slices > 1 else {}
    if num_chips == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        found = topologies.get_topology_desc(
            topology_name=name, platform="tpu", **options
        )
    except (NotImplementedError, RuntimeError) as error:
        raise ValueError(_explain(text, error)) from error
    return found.devices


def _explain(text: str, error: Exception) -> str:
    """Say why there is no such topology."""
    try:
        import libtpu  # type: ignore  # noqa: F401 (of the extra [plan])
    except ImportError:
        return f'--topology {text} needs libtpu: pip install "vit-resnet-jax[plan]"'
    reason = str(error).splitlines()[0]
    return f"--topology {text!r} is not one that libtpu knows: {reason}"
