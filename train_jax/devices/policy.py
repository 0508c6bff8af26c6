"""Decide what depends on the kind of device: convolutions, loops, compiler effort."""

import functools
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax

from resnet_jax import conv_general_dilated
from train_jax.devices import compiler, processor
from vit_jax import bfloat16

_rounded_conv = functools.partial(conv_general_dilated, rounds_to_bfloat16=True)


def has_convolutions(model: nn.Module) -> bool:
    """Whether a model convolves; a model says so, and lets them be replaced."""
    return getattr(model, "has_convolutions", False)


def adapt_model(model: nn.Module, *, devices: Sequence[Any] | None = None) -> nn.Module:
    """Let a model compute as is fastest on the devices, all of them if not given.

    On a single CPU convolutions become matrix products. These go through the batch in
    chunks, which several devices could not share. With the dtype bfloat16 a CPU rounds
    the factors of products and of convolutions alone, if that makes them faster; see
    `vit_jax.bfloat16` and `resnet_jax.cpu.rounded`.

    Raises:
        ValueError: if the model asks for cuDNN's attention, which is not available.
    """
    dtype: Any = model.dtype  # type: ignore (of all models)
    if getattr(model, "attention_implementation", "own") == "cudnn":
        _check_cudnn(str(jax.numpy.dtype(dtype)))
    devices = jax.devices() if devices is None else devices
    if devices[0].platform != "cpu":
        return model
    is_single = len(devices) == 1
    changes: dict[str, Any] = {}
    if is_single and has_convolutions(model):
        rounds = dtype == jax.numpy.bfloat16 and processor.convolves_bfloat16()
        convolve = _rounded_conv if rounds else conv_general_dilated
        changes["conv_general_dilated"] = convolve
    if dtype == jax.numpy.bfloat16:
        changes["dtype"] = jax.numpy.float32
        has_products = hasattr(model, "dot_general")
        if is_single and has_products and processor.multiplies_bfloat16():
            changes["dot_general"] = bfloat16.dot_general
    return model.clone(**changes)


def portable_model(model: nn.Module) -> nn.Module:
    """Let a model compute as is possible on every device.

    It undoes `adapt_model`, but for the dtype: what was trained in bfloat16 computes in
    float32 if it was adapted to a CPU.
    """
    changes: dict[str, Any] = {}
    if hasattr(model, "conv_general_dilated"):
        changes["conv_general_dilated"] = jax.lax.conv_general_dilated
    if hasattr(model, "dot_general"):
        changes["dot_general"] = jax.lax.dot_general
    return model.clone(**changes)


def fastest_dtype(make_model: Callable[..., nn.Module]) -> str:
    """Choose the dtype "float32" or "bfloat16", whichever is faster on this device.

    Args:
        make_model: the model's class, or a preset of it.
    """
    if jax.default_backend() == "cpu":
        fields = inspect.signature(make_model).parameters
        is_faster = jax.device_count() == 1 and (
            ("dot_general" in fields and processor.multiplies_bfloat16())
            or ("conv_general_dilated" in fields and processor.convolves_bfloat16())
        )
        return "bfloat16" if is_faster else "float32"
    return "float32" if _is_older_gpu() else "bfloat16"


def _is_older_gpu() -> bool:
    """Whether this is one of NVIDIA's GPUs before the generation of A100, 8.0.

    They have neither products of bfloat16 nor cuDNN's attention.
    """
    capability = str(getattr(jax.devices()[0], "compute_capability", ""))
    return re.fullmatch(r"[1-7]\.\d+", capability) is not None


def _check_cudnn(dtype: str) -> None:
    """Raise ValueError if cuDNN's attention does not work here."""
    if jax.default_backend() != "gpu" or dtype == "float32" or _is_older_gpu():
        raise ValueError(
            "config.model.attention_implementation 'cudnn' needs a GPU of at least "
            "compute capability 8.0 (A100) and config.dtype bfloat16, got "
            f"{jax.devices()[0].device_kind} and {dtype}"
        )


def computes_runs_in_turn(devices: Sequence[Any]) -> bool:
    """Whether several runs are computed one after the other.

    On a single CPU eight ViTs in turn take 0.88 of the time they take all at once.
    """
    return is_single_cpu(devices)


def is_single_cpu(devices: Sequence[Any]) -> bool:
    """Whether the only device is a CPU."""
    return len(devices) == 1 and devices[0].platform == "cpu"


def runs_steps_in_a_loop(model: nn.Module, *, platform: str) -> bool:
    """Whether several steps are compiled as one loop, for "cpu", "gpu" or "tpu".

    Inside a loop XLA's CPU backend runs its own convolutions on a path ten times
    slower; everything else, convolutions as matrix products among it, is faster there.
    """
    if platform != "cpu" or not has_convolutions(model):
        return True
    return _multiplies_convolutions(model)


def _multiplies_convolutions(model: nn.Module) -> bool:
    """Whether a model's convolutions, if it has any, are matrix products."""
    convolve = getattr(model, "conv_general_dilated", jax.lax.conv_general_dilated)
    return convolve is not jax.lax.conv_general_dilated


def jit_of_model(model: nn.Module, *, platform: str) -> Callable[..., Any]:
    """Choose how a model's training step and its inference are compiled.

    On a CPU, with less effort of LLVM, a step of a ResNet takes 4 % more time, and
    compiles no faster. Products of bfloat16 numbers need the library YNN.
    """
    if platform != "cpu":
        return jax.jit
    if not has_convolutions(model):
        return compiler.fast_jit
    # The products of a ViT, whose stem may convolve, are not affected.
    is_resnet = not hasattr(model, "dot_general")
    convolve: Any = model.conv_general_dilated  # type: ignore (of all that convolve)
    in_float32 = is_resnet and convolve is conv_general_dilated
    return compiler.convolution_jit if in_float32 else jax.jit
