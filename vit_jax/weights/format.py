"""What a format of a ViT's weights is made of, and what the formats share."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vit_jax.vit import ViT
from weight_files import Entry, Source, renamed

Arrays = dict[str, np.ndarray]

# Width and depth → heads, of the models that have a name: Ti, S, B, L and H.
_NUM_HEADS = {(192, 12): 3, (384, 12): 6, (768, 12): 12, (1024, 24): 16, (1280, 32): 16}


class UnknownHeadsError(ValueError):
    """The weights don't say how many heads there are."""


@dataclasses.dataclass(frozen=True)
class Format:
    """How another library names and arranges a ViT's parameters.

    Attributes:
        library: whose it is, for messages.
        recognizes: whether arrays of these names are of the format.
        read_fields: the fields of `ViT`; "channels"; "image_size", (height, width) or
            None; and, where the library says them, "mean", "std", "crop_fraction",
            "resampling" and "resize", see `Pretrained`.
        read_arrays: brings the arrays into the form that `table` describes; it is told
            the number of patches.
        table: the entries for a model.
        write_arrays: undoes `read_arrays`.
        check: raises ValueError for a model that the library cannot express.
    """

    library: str
    recognizes: Callable[[Mapping[str, Any]], bool]
    read_fields: Callable[[Source], dict[str, Any]]
    table: Callable[[ViT], list[Entry]]
    check: Callable[[ViT], None]
    read_arrays: Callable[[Arrays, ViT, int], Arrays] = lambda arrays, model, _: arrays
    write_arrays: Callable[[Arrays, ViT], Arrays] = lambda arrays, model: arrays


def count_blocks(names: Mapping[str, Any], prefix: str) -> int:
    """Count the blocks: how many numbers follow the prefix."""
    rest = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    return len({text.partition(".")[0].partition("/")[0] for text in rest})


def find_num_heads(width: int, depth: int, config: Mapping[str, Any]) -> dict[str, int]:
    """Find the number of heads, which files in PyTorch's layout don't say.

    It is the config's, or that of the known model of this width and depth.
    """
    heads = config.get("num_heads") or _NUM_HEADS.get((width, depth))
    return {} if heads is None else {"num_heads": heads}


def square_side(count: int) -> int | None:
    """Return the side of a square grid of so many patches; None if there is none."""
    side = round(count**0.5)
    return side if side * side == count else None


def patch_embedding(ours: str, theirs: str, model: ViT) -> list[Entry]:
    """Match the embedding, (P·P·C, D), with a convolution's kernel (D, C, P, P)."""
    patch = model.patch_size

    def read(kernel: np.ndarray) -> list[np.ndarray]:
        return [kernel.transpose(2, 3, 1, 0).reshape(-1, kernel.shape[0])]

    def write(kernel: np.ndarray) -> np.ndarray:
        width = kernel.shape[-1]
        return kernel.reshape(patch, patch, -1, width).transpose(3, 2, 0, 1)

    path = f"params/{ours}"
    return [
        Entry((f"{path}/kernel",), f"{theirs}.weight", read, write),
        renamed(f"{path}/bias", f"{theirs}.bias"),
    ]


def check_plain(model: ViT, library: str, **allowed: tuple[Any, ...]) -> None:
    """Raise ValueError for a field whose value the library cannot express.

    Args:
        model: the model.
        library: its name.
        **allowed: field → values, all if empty; others must be the plain ViT's.
    """
    plain = {
        "stem": ("patches",),
        "norm": ("pre",),
        "qkv_bias": (True,),
        "normalize_qk": (False,),
        "residual": (True,),
        "position_embedding": ("learned",),
        "pool": ("cls",),
        "num_registers": (0,),
        "layer_scale": (None,),
        "representation_size": (None,),
        "norm_after_pool": (False,),
        "norm_epsilon": (1e-6,),
        "activation": ("gelu",),
    }
    for field, values in (plain | allowed).items():
        value = getattr(model, field)
        if values and value not in values:
            raise ValueError(
                f"{library} has no ViT with {field} {value!r}; it must be "
                f"{' or '.join(map(repr, values))}"
            )
    if model.mlp_ratio is None:
        raise ValueError(f"{library} has no ViT with mlp_ratio None, without MLPs")
