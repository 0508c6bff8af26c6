"""Set up all tests: eight virtual CPU devices, strict rank promotion."""

import contextlib
import ctypes
import gc
import math
import mmap
import os
import pathlib
import shutil
import tempfile

import jax
import pytest

from train_jax.devices import compiler

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_flags = ["--xla_force_host_platform_device_count=8"]
if os.environ["JAX_PLATFORMS"] == "cpu":
    # Thousands of tiny programs are compiled, and each runs a few times. Without these
    # flags the suite takes twice as long. Commands in processes of their own are
    # compiled as usual.
    _flags += ["--xla_backend_optimization_level=0"]
    compiler._LLVM_LEVEL = 0
    # A device that has to wait for a processor is not stuck: XLA would abort.
    _flags += ["--xla_cpu_collective_call_warn_stuck_timeout_seconds=300"]
    _flags += ["--xla_cpu_collective_call_terminate_timeout_seconds=600"]
    if jax.__version_info__ < (0, 11):  # later ones do not know it
        _flags += ["--xla_cpu_use_fusion_emitters=false"]
# XLA reads them when it is first used.
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_flags])

jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_configure(config: pytest.Config) -> None:
    """Cache compiled programs and modules, for as long as the tests run.

    JAX looks for its cache when it first compiles something, which may be while tests
    are collected. Where Python keeps no compiled modules, it has to: dozens of
    processes are started, and each would compile thousands of modules.
    """
    folder = tempfile.mkdtemp()
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    is_worker = hasattr(config, "workerinput")
    if not is_worker and os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
        os.environ["PYTHONPYCACHEPREFIX"] = folder


# The files that take longest, so that no worker is left with one of them at the end.
_FIRST = (
    *("train/test_processes.py", "test_benchmarks.py", "train/store/test_runs.py"),
    *("train/test_commands.py", "train/test_faults.py", "train/test_streaming.py"),
    *("resnet/test_weights.py", "train/test_runs.py", "test_examples.py"),
    *("train/test_loop.py", "weights/test_what_files_say.py", "weights/test_files.py"),
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of the slowest files first."""

    def place(item: pytest.Item) -> int:
        path = item.path.as_posix()
        found = (i for i, name in enumerate(_FIRST) if path.endswith(f"tests/{name}"))
        return next(found, len(_FIRST))

    items.sort(key=place)


# Beyond this, compiled programs are dropped, bytes: those of all tests take gigabytes.
_MOST_MEMORY = 3 * 2**30


@pytest.fixture(scope="module", autouse=True)
def no_programs_left():
    """Drop compiled programs after a module if the process has become large."""
    yield
    usage = pathlib.Path("/proc/self/statm")  # of Linux
    pages = int(usage.read_text("utf-8").split()[1]) if usage.exists() else math.inf
    if pages * mmap.PAGESIZE > _MOST_MEMORY:
        jax.clear_caches()
        gc.collect()
        with contextlib.suppress(AttributeError, OSError):
            # glibc would keep what is freed, and every later module would start anew.
            ctypes.CDLL(None).malloc_trim(0)
