"""Set up all tests: eight virtual CPU devices, strict rank promotion."""

import gc
import os
import shutil
import tempfile

import jax
import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_flags = ["--xla_force_host_platform_device_count=8"]
if os.environ["JAX_PLATFORMS"] == "cpu":
    # Thousands of tiny programs are compiled, and each runs a few times. Without these
    # flags the suite takes twice as long. Commands in processes of their own are
    # compiled as usual.
    _flags += ["--xla_backend_optimization_level=0"]
    if jax.__version_info__ < (0, 11):  # later ones do not know it
        _flags += ["--xla_cpu_use_fusion_emitters=false"]
# XLA reads them when it is first used.
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_flags])

jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_configure(config: pytest.Config) -> None:
    """Keep modules compiled where that is switched off, for as long as the tests run.

    Dozens of processes are started. Each would compile thousands of modules, for longer
    than it does anything else.
    """
    is_worker = hasattr(config, "workerinput")
    if not is_worker and os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
        folder = os.environ["PYTHONPYCACHEPREFIX"] = tempfile.mkdtemp()
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


@pytest.fixture(scope="session", autouse=True)
def compilation_cache():
    """Cache compiled programs for the session."""
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
        yield
        jax.config.update("jax_compilation_cache_dir", None)


@pytest.fixture(scope="module", autouse=True)
def no_programs_left():
    """Drop a module's compiled programs after it: those of all take gigabytes."""
    yield
    jax.clear_caches()
    gc.collect()
