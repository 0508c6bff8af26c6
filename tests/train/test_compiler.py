"""What XLA compiles is kept, and compiled with less effort on a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import conv_general_dilated
from train_jax.devices import compiler

CACHE = "jax_compilation_cache_dir"
# What `enable_compilation_cache` sets.
SETTINGS = (
    CACHE,
    "jax_enable_compilation_cache",
    "jax_persistent_cache_min_compile_time_secs",
)


@pytest.fixture
def no_cache():
    """As when a command starts; what is set then is undone for the other tests."""
    before = {name: jax.config.values[name] for name in SETTINGS}
    jax.config.update(CACHE, None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_compiled_programs_are_kept(no_cache, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiler.enable_compilation_cache()
    folder = jax.config.values[CACHE]
    assert folder.startswith(str(tmp_path / "vit-resnet-jax" / "compiled-"))
    compiler.enable_compilation_cache()
    assert jax.config.values[CACHE] == folder


def test_a_folder_that_the_user_names_is_used(no_cache, tmp_path):
    jax.config.update(CACHE, str(tmp_path))
    compiler.enable_compilation_cache()
    assert jax.config.values[CACHE] == str(tmp_path)


def test_several_processes_with_gpus_keep_no_programs(no_cache, monkeypatch):
    """One that compiles would wait for one that has found the program."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    compiler.enable_compilation_cache()
    assert not jax.config.values["jax_enable_compilation_cache"]


def test_a_folder_that_cannot_be_written_is_a_warning(no_cache, capsys):
    jax.config.update(CACHE, "/proc/no_such_folder")
    compiler.enable_compilation_cache()
    assert not jax.config.values["jax_enable_compilation_cache"]
    assert capsys.readouterr().err == (
        "warning: compiled programs are not kept, '/proc/no_such_folder' cannot be "
        "written: No such file or directory\n"
    )


def test_fast_jit_computes_what_jax_jit_does():
    def double(x):
        return {"y": 2 * x}

    x = jnp.arange(5.0)
    compiled = compiler.fast_jit(double, donate_argnums=0)
    np.testing.assert_array_equal(compiled(x)["y"], [0, 2, 4, 6, 8])
    assert x.is_deleted()


def test_products_of_convolutions_do_not_go_to_ynn():
    x = jnp.ones((256, 256))
    compiled = compiler.convolution_jit(jnp.matmul)
    np.testing.assert_allclose(compiled(x, x), 256.0)
    assert "ynn_fusion" not in compiled.lower(x, x).compile().as_text()


def test_what_a_convolution_takes_is_computed_once():
    def convolve(image, kernel):
        return conv_general_dilated(jnp.maximum(image, 0), kernel, (2, 2), "SAME").sum()

    arrays = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4, 4))
    compiled = compiler.convolution_jit(jax.grad(convolve, argnums=1))
    assert compiled.lower(*arrays).compile().as_text().count(" maximum(") == 1


def test_an_option_that_xla_does_not_know_is_left_out(monkeypatch):
    assert not compiler._accepts((("xla_cpu_unheard_of", "1"),))
    monkeypatch.setattr(compiler, "_accepts", lambda options: False)
    assert compiler.convolution_jit(abs)(jnp.float32(-1)) == 1


def test_only_on_a_cpu_llvm_makes_less_effort(monkeypatch):
    options = []
    monkeypatch.setattr(compiler, "_LLVM_LEVEL", 2)
    monkeypatch.setattr(jax, "jit", lambda f, **kwargs: options.append(kwargs))
    for backend in ("cpu", "gpu"):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        compiler.fast_jit(abs)
    cpu, gpu = (x["compiler_options"] for x in options)
    assert cpu == {"xla_backend_optimization_level": 2}
    assert gpu is None
