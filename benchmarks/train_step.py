"""How fast is a training step, against PyTorch doing the same?"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import torch

from benchmarks import ours, peers
from benchmarks.cases import Case, cases
from benchmarks.timing import Timing, take_turns
from train_jax.devices import policy
from train_jax.devices.flops import count_flops
from vit_jax import ViT

# Whose rate is what a machine can reach.
PRODUCT = "a matrix product of 2,048 × 2,048 numbers, JAX"
_SIDE = 2048


def measure(*, small: bool, rounds: int) -> Iterator[Timing]:
    """Time a step of each model, in float32 and bfloat16."""
    for name, case in cases(small=small).items():
        variants: dict[str, dict[str, Any]] = {"eager": {}}
        if case.is_convolutional:
            variants["eager, channels last"] = {"channels_last": True}
        if not small:
            variants["compiled"] = {
                "is_compiled": True,
                "channels_last": case.is_convolutional,
            }
        for dtype in ("float32",) if small else ("float32", "bfloat16"):
            programs = make_programs(case, dtype, variants)
            flops = dict.fromkeys(programs, flops_of_step(case))
            if not case.is_convolutional:
                # PyTorch's last block computes all tokens, not the class token alone.
                with mock.patch.object(ViT, "_num_outputs", lambda *_: None):
                    all_tokens = make_programs(case, dtype, {})["ours"]
                    in_all = flops_of_step(case)
                flops = {k: flops[k] if k == "ours" else in_all for k in flops}
                programs["ours, all tokens in the last block"] = all_tokens
                flops["ours, all tokens in the last block"] = in_all
            programs[PRODUCT] = _make_products(dtype, case.num_steps)
            flops[PRODUCT] = 2 * _SIDE**3
            *timings, product = take_turns(
                f"{name}, batch {case.batch_size}, {dtype}",
                programs,
                rounds=rounds,
                images=case.batch_size,
                units=case.num_steps,
            )
            reach = flops[PRODUCT] / product.median
            for timing in timings:
                share = flops[timing.program] / timing.median / reach
                yield dataclasses.replace(timing, peak_share=share)
            yield dataclasses.replace(product, peak_share=1.0, images=0)


def flops_of_step(case: Case) -> float:
    """Count a training step's operations: three times those of a forward pass."""
    # As convolutions, and by plain attention, whatever computes them here.
    fields = dict(case.fields)
    fields.pop("model.attention_implementation", None)
    model = policy.portable_model(ours.make_model(case._replace(fields=fields)))
    image = jax.ShapeDtypeStruct((case.batch_size, *case.image_shape), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    return 3 * count_flops(jax.jit(model.apply).trace(variables, image).jaxpr)


def _make_products(dtype: str, count: int) -> Callable[[], None]:
    """Make a program that multiplies matrices some times when it is called."""
    x = jax.random.normal(jax.random.key(0), (_SIDE, _SIDE)).astype(dtype)
    # A CPU is fastest with sums in float32.
    multiply = jax.jit(lambda x: jnp.dot(x, x, preferred_element_type=jnp.float32))

    def take_products() -> None:
        for _ in range(count):
            multiply(x).block_until_ready()

    return take_products


def make_programs(
    case: Case, dtype: str, variants: dict[str, dict[str, Any]]
) -> dict[str, Callable[[], None]]:
    """Make the programs to compare: each trains for the case's number of steps.

    Args:
        case: the model and its images.
        dtype: of the computation.
        variants: PyTorch's programs, with arguments of `peers.make_steps`.
    """
    adamw = {"optimizer.weight_decay": 0.05, "optimizer.schedule": "constant"}
    program = ours.make_program(case, case.num_steps, dtype=dtype, **adamw)
    return {"ours": program} | {
        f"PyTorch {name}": peers.make_steps(
            case, dtype=getattr(torch, dtype), **options
        )
        for name, options in variants.items()
    }
