"""Models of other libraries: the cases, and how this project loads them."""

import pathlib
from typing import Any

import numpy as np

import resnet_jax.weights
import vit_jax.weights
from weight_files import Pretrained, Source

FOLDER = pathlib.Path(__file__).parents[1] / "golden"

_timm = {
    "img_size": 8,
    "patch_size": 4,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 4,
    "mlp_ratio": 1.5,
    "num_classes": 5,
}
_huggingface = {
    "image_size": 8,
    "patch_size": 4,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "num_labels": 5,
}
# Name → library, its arguments, the image's shape.
GOLDEN: dict[str, tuple[str, dict[str, Any], tuple[int, int, int]]] = {
    "timm": ("timm", _timm, (8, 8, 3)),
    "timm_registers": (
        "timm",
        _timm | {"reg_tokens": 2, "init_values": 0.1},
        (8, 8, 3),
    ),
    "timm_no_embed_class": (
        "timm",
        _timm | {"reg_tokens": 2, "no_embed_class": True},
        (8, 8, 3),
    ),
    "timm_mean": ("timm", _timm | {"global_pool": "avg"}, (8, 8, 3)),
    "timm_mean_only": (
        "timm",
        _timm | {"global_pool": "avg", "class_token": False, "in_chans": 1},
        (8, 8, 1),
    ),
    "timm_map": (
        "timm",
        _timm | {"global_pool": "map", "class_token": False},
        (8, 8, 3),
    ),
    "timm_qk_norm": (
        "timm",
        _timm | {"qkv_bias": False, "qk_norm": True},
        (8, 8, 3),
    ),
    "timm_oblong": ("timm", _timm | {"img_size": (8, 12)}, (8, 12, 3)),
    "huggingface_vit": ("huggingface_vit", _huggingface, (8, 8, 3)),
    "huggingface_tanh": (
        "huggingface_vit",
        _huggingface | {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
        (8, 8, 3),
    ),
    "huggingface_no_qkv_bias": (
        "huggingface_vit",
        _huggingface | {"qkv_bias": False},
        (8, 8, 3),
    ),
    "torchvision_vit": (
        "torchvision_vit",
        {
            "image_size": 8,
            "patch_size": 4,
            "num_layers": 2,
            "num_heads": 4,
            "hidden_dim": 16,
            "mlp_dim": 24,
            "num_classes": 5,
            "representation_size": 6,
        },
        (8, 8, 3),
    ),
    "huggingface_resnet": (
        "huggingface_resnet",
        {
            "embedding_size": 4,
            "hidden_sizes": [16, 32],
            "depths": [1, 2],
            "num_labels": 5,
        },
        (20, 24, 3),
    ),
}


def read_golden(name: str) -> dict[str, np.ndarray]:
    """Read a recording."""
    with np.load(FOLDER / f"weights_{name}.npz", allow_pickle=False) as file:
        return dict(file)


def below(record: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Select the arrays whose names begin so, named without it."""
    start = f"{prefix}/"
    return {k.removeprefix(start): v for k, v in record.items() if k.startswith(start)}


def load(library: str, arguments: dict[str, Any], state: dict[str, Any]) -> Pretrained:
    """Load a state dict, and what its library would write beside it."""
    if library == "timm":
        pool = arguments.get("global_pool", "token")
        config = {"model_args": arguments, "global_pool": pool}
        return vit_jax.weights.load(
            Source("timm", state, config), image_size=_size(arguments["img_size"])
        )
    if library == "torchvision_vit":
        return vit_jax.weights.load(state, num_heads=arguments["num_heads"])
    if library == "huggingface_vit":
        return vit_jax.weights.load(Source("hf", state, arguments))
    if library == "huggingface_resnet":
        return resnet_jax.weights.load(Source("hf", state, arguments))
    return resnet_jax.weights.load(state)


def _size(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size
