"""Start the real commands, each in a process of its own."""

import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping

from tests.train.tiny import TINY

# Two steps are enough. With a constant learning rate the compiled program is the same
# for any number.
FIELDS = TINY | {"num_steps": 2, "optimizer.schedule": "constant"}

# Run the command that follows without CAP_DAC_OVERRIDE (1), the super-user's right to
# write to what is read-only; 24 is PR_CAPBSET_DROP.
_HEEDING_MODES = """
import ctypes, os, sys
if os.getuid() == 0 and ctypes.CDLL(None).prctl(24, 1, 0, 0, 0):
    sys.exit("the capability cannot be dropped")
os.execv(sys.argv[1], sys.argv[1:])
"""


def train_arguments(workdir: object, **fields: object) -> list[str]:
    """The command line of a tiny run."""
    values = [f"--config.{k}={v}" for k, v in (FIELDS | fields).items()]
    config = ["--config", "configs/vit_digits.py"]
    return [*config, "--workdir", str(workdir), *values]


def environment(folder: pathlib.Path, **variables: str) -> dict[str, str]:
    """An environment in which compiled programs are kept in this folder."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        **variables,
    }


def run(
    arguments: list[str],
    variables: Mapping[str, str],
    *,
    module: str = "train",
    program: str | None = None,
    heeds_modes: bool = False,
) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end.

    Args:
        arguments: the command line.
        variables: its environment.
        module: "train" for train.py.
        program: the text of one in Python, in place of a module.
        heeds_modes: whether files that are read-only are so to the super-user, too.
    """
    what = ["-m", module] if program is None else ["-c", program]
    command = [sys.executable, *what, *arguments]
    if heeds_modes:
        command = [sys.executable, "-c", _HEEDING_MODES, *command]
    return subprocess.run(
        command, env=variables, capture_output=True, check=False, timeout=120
    )
