"""Start the real commands, each in a process of its own."""

import ctypes
import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping

from tests.train.tiny import TINY

_CAP_DAC_OVERRIDE, _PR_CAPBSET_DROP = 1, 24

# Two steps are enough.
FIELDS = TINY | {"num_steps": 2}


def train_arguments(workdir: object, **fields: object) -> list[str]:
    """The command line of a tiny run."""
    values = [f"--config.{k}={v}" for k, v in (FIELDS | fields).items()]
    config = ["--config", "configs/vit_digits.py"]
    return [*config, "--workdir", str(workdir), *values]


def environment(folder: pathlib.Path, **variables: str) -> dict[str, str]:
    """An environment in which compiled programs are kept in a folder of the tests."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        **variables,
    }


def run(
    arguments: list[str],
    variables: Mapping[str, str],
    *,
    module: str = "train",
    heeds_modes: bool = False,
) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end.

    Args:
        arguments: the command line.
        variables: its environment.
        module: "train" for train.py.
        heeds_modes: whether files that are read-only are so to the super-user, too.
    """
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env=variables,
        capture_output=True,
        check=False,
        timeout=120,
        preexec_fn=_heed_modes if heeds_modes else None,
    )


def _heed_modes() -> None:
    """Give up the super-user's right to write to what is read-only."""
    if os.getuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "the capability cannot be dropped")
