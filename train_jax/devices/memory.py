"""How much memory there is, for data and for a program."""

import os
import pathlib
import platform
import re
import sys
import zlib
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

# Share of the free memory that a data set may take. On a CPU the set is there twice
# while it is loaded.
SHARE = 0.4


def room_for_data() -> float:
    """Estimate how many bytes of images fit into the machine's and a device's memory.

    Several processes get the same answer, the smallest; those of one machine share its
    memory.
    """
    on_host = min(_free_on_host(), free_in_cgroups())
    on_device = min(map(_free_on_device, jax.local_devices()))
    if jax.process_count() == 1:
        return SHARE * min(on_host, on_device)
    gather = multihost_utils.process_allgather
    host_P = gather(np.uint32(zlib.crc32(platform.node().encode())))
    on_host /= (host_P == host_P[jax.process_index()]).sum()
    return SHARE * float(gather(np.float32(min(on_host, on_device))).min())


def warn_of_lack(compiled: Any) -> None:
    """Warn if a training step needs more memory than a CPU's machine has left.

    Other devices raise an error; a process that fills the machine is killed silently.

    Args:
        compiled: the step, a `jax.stages.Compiled`.
    """
    if jax.default_backend() != "cpu":
        return
    analysis = compiled.memory_analysis()
    needed = len(jax.local_devices()) * getattr(analysis, "temp_size_in_bytes", 0)
    free = min(_free_on_host(), free_in_cgroups())
    if needed > free:
        print(
            f"warning: a training step needs about {needed / 2**30:.1f} GiB of memory, "
            f"{free / 2**30:.1f} GiB are free; a smaller config.dataset.image_size, a "
            "larger patch_size, a smaller config.batch_size or more accumulation_steps "
            "take less",
            file=sys.stderr,
        )


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


def free_in_cgroups(
    root: pathlib.Path = pathlib.Path("/sys/fs/cgroup"),
    own: pathlib.Path = pathlib.Path("/proc/self/cgroup"),
) -> float:
    """Bytes that the limits of a container or a cluster's job leave; infinity if none.

    Args:
        root: where Linux describes the control groups, of either version.
        own: the file that names those of this process.
    """
    lines = own.read_text("utf-8").splitlines() if own.exists() else []
    least = float("inf")
    for limit, used, folder, line in (
        ("memory.max", "memory.current", root, r"0::/(.*)"),
        (
            *("memory.limit_in_bytes", "memory.usage_in_bytes"),
            *(root / "memory", r"\d+:(?:[^:]*,)?memory(?:,[^:]*)?:/(.*)"),
        ),
    ):
        names = [found[1] for each in lines if (found := re.fullmatch(line, each))]
        group = folder / (names[0] if names else "")
        while group.is_relative_to(folder):  # a parent's limit holds as well
            least = min(least, _free_in_group(group / limit, group / used))
            group = group.parent
    return least


def _free_in_group(limit: pathlib.Path, used: pathlib.Path) -> float:
    """Bytes that the limit of a control group leaves; infinity if there is none."""
    try:
        # Without a limit this is "max".
        free = int(limit.read_text("utf-8")) - int(used.read_text("utf-8"))
        statistics = (limit.parent / "memory.stat").read_text("utf-8")
    except (OSError, ValueError):
        return float("inf")
    # Files that have been read are given up first.
    cached = re.search(r"^(?:total_)?inactive_file (\d+)$", statistics, re.MULTILINE)
    return float(max(0, free + (int(cached[1]) if cached else 0)))


def _free_on_device(device: Any) -> float:
    """Bytes that a device has left; infinity for a CPU."""
    stats = device.memory_stats() if device.platform != "cpu" else None
    if not stats:
        return float("inf")
    return float(stats["bytes_limit"] - stats["bytes_in_use"])
