"""What the processor of this machine can do."""

import functools
import pathlib
import platform

import jax
import jax.numpy as jnp

from vit_jax import bfloat16

# As Linux names them: of x86, an AMD or Intel processor.
_MATRIX_FLAG = "amx_bf16"
_BFLOAT16_FLAGS = {"avx512_bf16", _MATRIX_FLAG}


@functools.cache
def facts() -> str:
    """Describe the kind of processor: its architecture, name and instructions."""
    path = pathlib.Path("/proc/cpuinfo")
    lines = path.read_text("utf-8", "replace").splitlines() if path.exists() else []
    known = [x for x in lines if x.startswith(("model name", "flags", "Features"))]
    return "\n".join([platform.machine(), *sorted(set(known))])


@functools.cache
def multiplies_bfloat16() -> bool:
    """Whether products of bfloat16 numbers are faster than of float32 ones.

    The processor needs instructions for them, and XLA has to make use of them: one
    small gradient is computed to see that it can.
    """
    if not _BFLOAT16_FLAGS & set(facts().split()):
        return False

    def multiply(x: jax.Array, y: jax.Array) -> jax.Array:
        return bfloat16.dot_general(x, y, (((1,), (0,)), ((), ()))).sum()

    x, y = jnp.ones((16, 32)), jnp.ones((32, 48))
    try:
        jax.block_until_ready(jax.jit(jax.grad(multiply, (0, 1)))(x, y))
    except jax.errors.JaxRuntimeError:
        return False
    return True


def convolves_bfloat16() -> bool:
    """Whether 3×3 convolutions of bfloat16 numbers are faster than of float32 ones.

    Without Winograd's method they have four times as many multiplications. With AMX
    these are four times as fast, with AVX512_BF16 alone twice.
    """
    return _MATRIX_FLAG in facts().split() and multiplies_bfloat16()
