"""How fast is a training step, against PyTorch doing the same?"""

from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch

from benchmarks import ours, peers
from benchmarks.cases import Case, cases
from benchmarks.timing import Timing, take_turns
from vit_jax import ViT


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
            if not case.is_convolutional:
                # PyTorch's last block computes all tokens, not the class token alone.
                with mock.patch.object(ViT, "_num_outputs", lambda *_: None):
                    all_tokens = make_programs(case, dtype, {})["ours"]
                programs["ours, all tokens in the last block"] = all_tokens
            yield from take_turns(
                f"{name}, batch {case.batch_size}, {dtype}",
                programs,
                rounds=rounds,
                images=case.batch_size,
                units=case.num_steps,
            )


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
