"""Compile with XLA: less effort where it pays, a cache on disk for the next start."""

import functools
import hashlib
import pathlib
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import jax

from train_jax.devices import processor
from train_jax.storage.paths import cache_folder, local_path

# How much effort LLVM makes, as by -O2.
_LLVM_LEVEL = 2


def enable_compilation_cache() -> None:
    """Keep compiled programs on disk, so that the next start need not compile them.

    The folder is one for this kind of CPU, as XLA compiles for its instructions;
    JAX_COMPILATION_CACHE_DIR names another one. If it cannot be written, a warning is
    printed. Several processes with GPUs keep none: they share the work of autotuning,
    and one that compiles would wait for another that found the program in its cache.

    Raises:
        ValueError: if the folder is an address that JAX cannot write to.
    """
    if jax.process_count() > 1 and jax.default_backend() == "gpu":
        jax.config.update("jax_enable_compilation_cache", False)
        return
    name = "JAX_COMPILATION_CACHE_DIR"
    chosen = jax.config.values["jax_compilation_cache_dir"]
    if chosen and "://" in chosen:
        return  # JAX itself can write to such addresses.
    folder = local_path(chosen, name) if chosen else _default_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        print(
            f"warning: compiled programs are not kept, {str(folder)!r} cannot be "
            f"written: {error.strerror or error}",
            file=sys.stderr,
        )
        jax.config.update("jax_enable_compilation_cache", False)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if not chosen:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _default_folder() -> pathlib.Path:
    key = hashlib.sha256(processor.facts().encode()).hexdigest()[:16]
    return cache_folder() / f"compiled-{key}"


def fast_jit(function: Callable[..., Any], **kwargs: Any) -> Any:
    """Compile as `jax.jit` does, in less time.

    On a CPU, LLVM compiles as by -O2 instead of -O3: the MNIST ViT's step takes 2.9
    instead of 4.7 s to compile, and no longer to run.
    """
    options = {"xla_backend_optimization_level": _LLVM_LEVEL}
    is_cpu = jax.default_backend() == "cpu"
    return jax.jit(function, compiler_options=options if is_cpu else None, **kwargs)


def convolution_jit(function: Callable[..., Any], **kwargs: Any) -> Any:
    """Compile as `jax.jit` does; on a CPU, faster for convolutions as matrix products.

    The products do not go to the library YNN, which computes small ones on one core. A
    ResNet-18's step takes 0.88 of the time. Not for a ViT: YNN is faster in bfloat16.

    XLA keeps each `jax.lax.optimization_barrier`: what is before it is computed once,
    not in each operation that takes it. A step of ResNet-18 or ResNet-20 takes 0.98 of
    the time.

    Where XLA does not know the options, this is `jax.jit`.
    """
    options = {
        # YNN still computes sums, such as BatchNorm's: XLA's own are slower.
        "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE",
        # This pass drops the barriers, before operations are fused.
        "xla_disable_hlo_passes": "cse_barrier_expander",
    }
    is_known = jax.default_backend() == "cpu" and _accepts(tuple(options.items()))
    return jax.jit(function, compiler_options=options if is_known else None, **kwargs)


@functools.cache
def _accepts(options: tuple[tuple[str, str], ...]) -> bool:
    """Whether this version of XLA knows the options and their values."""
    compiled = jax.jit(lambda: 0, compiler_options=dict(options))
    try:
        compiled.lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
