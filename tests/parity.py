"""Parity with PyTorch: the cases, and how recordings are read and compared.

A recording is a flat dict of arrays, all in this project's layout (channels last,
masks True where a query may attend), except for those named by a PyTorch parameter:

    input/NAME, output/NAME, cotangent      loss = Σ cotangent · first output
    state/NAME, grad/NAME                   state_dict and the loss's gradient
    grad_input/NAME                         gradient with respect to an input
    state_after/NAME, count/NAME            BatchNorm: after the step; values averaged
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

Array = jax.Array
Record = dict[str, np.ndarray]

GOLDEN = Path(__file__).parent / "golden"

ATTENTION: dict[str, dict[str, Any]] = {
    "attention": {"mask": None},
    "attention_mask": {"mask": "random"},
}
MULTI_HEAD_ATTENTION = {
    "mha_self": {"cross": False, "mask": None},
    "mha_self_causal": {"cross": False, "mask": "causal"},
    "mha_cross": {"cross": True, "mask": None},
    "mha_cross_padding": {"cross": True, "mask": "padding"},
}
ENCODER_BLOCK: dict[str, dict[str, Any]] = {
    "encoder_block": {"norm": "pre", "mask": None},
    "encoder_block_causal": {"norm": "pre", "mask": "causal"},
    "encoder_block_post": {"norm": "post", "mask": None},
    "encoder_block_post_padding": {"norm": "post", "mask": "padding"},
}
# Masks of target-to-target, target-to-memory and source-to-source attention. Names with
# "padding" are PyTorch's key padding masks, which are combined with the other ones.
_decoder_masks = {
    "unmasked": {},
    "causal": {"target": "causal"},
    "target_padding": {"target_padding": "padding"},
    "memory": {"memory": "random"},
    "memory_padding": {"memory_padding": "padding"},
}
_all_masks = {
    "source": "random",
    "source_padding": "padding",
    "target": "causal",
    "target_padding": "padding",
    "memory": "random",
    "memory_padding": "padding",
}
_transformer_masks = _decoder_masks | {
    "source": {"source": "random"},
    "source_padding": {"source_padding": "padding"},
    "all": _all_masks,
}
DECODER_BLOCK = {
    f"decoder_block_{norm}_{name}": {"norm": norm, "masks": masks}
    for norm in ("pre", "post")
    for name, masks in _decoder_masks.items()
}
_small = {"width": 8, "num_heads": 2, "mlp_dim": 12, "depth": 1}
TRANSFORMER = {
    f"transformer_{norm}_{name}": {"norm": norm, "masks": masks, **_small}
    for norm in ("pre", "post")
    for name, masks in _transformer_masks.items()
} | {
    "transformer_16": {
        "norm": "post",
        "masks": {},
        "width": 16,
        "num_heads": 4,
        "mlp_dim": 32,
        "depth": 2,
    },
}
_vit = {"num_classes": 5, "patch_size": 4, "width": 16, "depth": 2, "num_heads": 4}
VIT = {
    "vit_cls": {"image_shape": (8, 12, 3), **_vit},
    "vit_mean": {"image_shape": (8, 12, 3), **_vit, "pool": "mean"},
    "vit_representation": {
        "image_shape": (8, 12, 3),
        **_vit,
        "representation_size": 12,
    },
}
VIT_LIVE = {
    "vit_mnist": {
        "image_shape": (28, 28, 1),
        "num_classes": 10,
        "patch_size": 7,
        "width": 128,
        "depth": 3,
        "num_heads": 4,
    },
}
CONV_STEM: dict[str, dict[str, Any]] = {"conv_stem": {"width": 6, "patch_size": 4}}
POOL: dict[str, dict[str, Any]] = {
    "sequence_pool": {"kind": "sequence"},
    "attention_pool": {"kind": "map"},
}
_basic = {"block": "BasicBlock", "inputs": 4}
_bottleneck = {"block": "BottleneckBlock", "inputs": 8}
RESNET_BLOCK = {
    "basic_block": {**_basic, "features": 4, "stride": 1},
    "basic_block_stride": {**_basic, "features": 8, "stride": 2},
    "bottleneck_block": {**_bottleneck, "features": 2, "stride": 1},
    "bottleneck_block_stride": {**_bottleneck, "features": 4, "stride": 2},
}
_resnet18 = {
    "num_classes": 10,
    "stage_sizes": (2, 2, 2, 2),
    "block": "BasicBlock",
    "stem": "small",
}
RESNET = {
    "resnet18": {"image_shape": (16, 16, 3), **_resnet18, "width": 3},
    "resnet_imagenet": {
        "image_shape": (25, 18, 3),
        "num_classes": 7,
        "stage_sizes": (1, 2),
        "block": "BottleneckBlock",
        "stem": "imagenet",
        "width": 4,
    },
}
RESNET_LIVE = {
    "resnet18_width64": {"image_shape": (16, 16, 3), **_resnet18, "width": 64},
}
# All that are recorded in files; tests/test_golden.py compares these with PyTorch.
GOLDEN_CASES = (
    *(ATTENTION | MULTI_HEAD_ATTENTION | ENCODER_BLOCK | DECODER_BLOCK | TRANSFORMER),
    *(VIT | CONV_STEM | POOL | RESNET_BLOCK | RESNET),
)


def sources(golden: dict[str, Any], live: dict[str, Any] | None = None) -> list:
    """Parametrize over (source, name, case): only cases without a file are live."""
    cases = [
        pytest.param("golden", *item, id=f"golden-{item[0]}") for item in golden.items()
    ]
    return cases + [
        pytest.param("live", *item, id=f"live-{item[0]}", marks=pytest.mark.parity)
        for item in (live or {}).items()
    ]


def read(source: str, name: str) -> Record:
    """Read a recording from its golden file, or let PyTorch make it now."""
    if source == "golden":
        with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
            return dict(file)
    pytest.importorskip("torch", reason="needs torch, the extra [parity]")
    from tests import make_golden

    return make_golden.record(name)


def part(record: Record, kind: str) -> Record:
    """Select the arrays of one kind, named without it."""
    prefix = f"{kind}/"
    return {
        name.removeprefix(prefix): array
        for name, array in record.items()
        if name.startswith(prefix)
    }


def value_and_gradients(
    function: Callable[..., tuple[Array, Any]], record: Record, *args: Any
) -> tuple[Array, Any, tuple]:
    """Compute function(*args) = (output, aux) and the gradients of its loss.

    Returns:
        output, aux, and the gradient with respect to each of the arguments.
    """

    def loss(*args):
        output, aux = function(*args)
        chex.assert_equal_shape([output, record["cotangent"]])
        return jnp.sum(output * record["cotangent"]), (output, aux)

    argnums = tuple(range(len(args)))
    # On a GPU or TPU float32 products are rounded to fewer bits by default.
    with jax.default_matmul_precision("highest"):
        gradient = jax.jit(jax.grad(loss, argnums, has_aux=True))
        gradients, (output, aux) = gradient(*args)
    return output, aux, gradients


def assert_close(actual: Any, expected: Any, *, atol: float) -> None:
    """Compare trees, to `atol`, and beyond 1 to that part of the value.

    A gradient that sums thousands of terms to 11 has no more than six right digits.
    """
    chex.assert_trees_all_close(actual, expected, rtol=atol, atol=atol)
