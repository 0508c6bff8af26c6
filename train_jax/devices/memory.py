"""How much memory there is for data."""

import os
import pathlib
import re
from typing import Any

import jax
from jax.experimental import multihost_utils

# Of the free memory, the share that a set may take. On a CPU it lies there twice while
# it is loaded.
SHARE = 0.4


def room_for_data() -> float:
    """Estimate how many bytes of images fit into the machine's and a device's memory.

    In several processes all come to the same: the least of them.
    """
    on_devices = map(_free_on_device, jax.local_devices())
    room = SHARE * min(_free_on_host(), free_in_container(), *on_devices)
    if jax.process_count() == 1:
        return room
    rooms = multihost_utils.process_allgather(jax.numpy.float32(room))
    return float(rooms.min())


def _free_on_host() -> float:
    """Bytes that a process can take without swapping; infinity if not known."""
    path = pathlib.Path("/proc/meminfo")
    text = path.read_text("utf-8") if path.exists() else ""
    if found := re.search(r"MemAvailable:\s*(\d+) kB", text):
        return 1024.0 * int(found[1])
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return float("inf")


def free_in_container(root: pathlib.Path = pathlib.Path("/sys/fs/cgroup")) -> float:
    """Bytes that the limit of a container leaves; infinity if there is no limit.

    Args:
        root: where Linux describes the control group, of either version.
    """
    for limit, used, folder in (
        ("memory.max", "memory.current", root),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", root / "memory"),
    ):
        try:
            # Without a limit this is "max".
            free = int((folder / limit).read_text()) - int((folder / used).read_text())
            statistics = (folder / "memory.stat").read_text()
        except (OSError, ValueError):
            continue
        # Files that have been read are given up first.
        cached = re.search(
            r"^(?:total_)?inactive_file (\d+)$", statistics, re.MULTILINE
        )
        return float(max(0, free + (int(cached[1]) if cached else 0)))
    return float("inf")


def _free_on_device(device: Any) -> float:
    """Bytes that a device has left; infinity for a CPU."""
    stats = device.memory_stats() if device.platform != "cpu" else None
    if not stats:
        return float("inf")
    return float(stats["bytes_limit"] - stats["bytes_in_use"])
