"""Change between an encoder's blocks one by one, and stacked as `scan` has them."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

_STACKED = "blocks"


def stack_blocks(params: Mapping[str, Any]) -> dict[str, Any]:
    """Stack an encoder's blocks, for a model with `scan`.

    >>> params = {"encoder": {f"block_{i}": {"bias": np.ones(2)} for i in range(3)}}
    >>> stack_blocks(params)["encoder"]["blocks"]["bias"].shape
    (3, 2)

    Args:
        params: of a `ViT`; if they are stacked already, nothing is changed.
    """
    encoder = dict(params["encoder"])
    names = sorted(
        (name for name in encoder if name.startswith("block_")),
        key=lambda name: int(name.removeprefix("block_")),
    )
    if names:
        blocks = [encoder.pop(name) for name in names]
        encoder[_STACKED] = jax.tree.map(lambda *parts: np.stack(parts), *blocks)
    return {**params, "encoder": encoder}


def unstack_blocks(params: Mapping[str, Any]) -> dict[str, Any]:
    """Undo `stack_blocks`.

    >>> params = {"encoder": {"blocks": {"bias": np.ones((3, 2))}}}
    >>> sorted(unstack_blocks(params)["encoder"])
    ['block_0', 'block_1', 'block_2']
    """
    encoder = dict(params["encoder"])
    if _STACKED in encoder:
        blocks = encoder.pop(_STACKED)
        for layer in range(len(jax.tree.leaves(blocks)[0])):
            encoder[f"block_{layer}"] = jax.tree.map(lambda x, i=layer: x[i], blocks)
    return {**params, "encoder": encoder}
