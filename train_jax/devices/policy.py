"""Decide what depends on the kind of device: convolutions, loops, compiler effort."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from resnet_jax import conv_general_dilated
from train_jax.devices import compiler


def has_convolutions(model: nn.Module) -> bool:
    """Whether a model convolves: it lets its convolutions be replaced."""
    return hasattr(model, "conv_general_dilated")


def adapt_model(model: nn.Module) -> nn.Module:
    """Let a model compute its convolutions as is fastest on this device.

    On a single CPU they become matrix products. These go through the batch in chunks,
    which several devices could not share.

    Raises:
        ValueError: if the model asks for cuDNN's attention, which is not available.
    """
    if getattr(model, "attention_implementation", "own") == "cudnn":
        _check_cudnn(str(jax.numpy.dtype(model.dtype)))  # type: ignore
    is_single_cpu = jax.default_backend() == "cpu" and jax.device_count() == 1
    if is_single_cpu and has_convolutions(model):
        return model.clone(conv_general_dilated=conv_general_dilated)
    return model


def _check_cudnn(dtype: str) -> None:
    """Raise ValueError if cuDNN's attention does not work here."""
    if jax.default_backend() != "gpu" or dtype == "float32":
        raise ValueError(
            "config.model.attention_implementation 'cudnn' needs a GPU and "
            f"config.dtype bfloat16, got {jax.default_backend()} and {dtype}"
        )


def runs_steps_in_a_loop(model: nn.Module) -> bool:
    """Whether several steps are compiled as one loop.

    Inside a loop XLA's CPU backend runs its own convolutions on a path ten times
    slower; everything else, convolutions as matrix products among it, is faster there.
    """
    convolve = getattr(model, "conv_general_dilated", None)
    is_cpu = jax.default_backend() == "cpu"
    return not (is_cpu and convolve is jax.lax.conv_general_dilated)


def jit_of_step(model: nn.Module) -> Callable[..., Any]:
    """Choose how a training step is compiled: `jax.jit`, or `compiler.fast_jit`.

    With less effort of LLVM a step of a ResNet takes 4 % more time, and compiles no
    faster.
    """
    return jax.jit if has_convolutions(model) else compiler.fast_jit
