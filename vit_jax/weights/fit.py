"""Fit the weights of a ViT to a model for other images or classes."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax.vit import ViT
from vit_jax.weights.position import resize_patch_embedding, resize_position_embedding
from vit_jax.weights.scan import stack_blocks, unstack_blocks
from weight_files import Pretrained, adapt_channels, check_variables, without_other_head

# Fields in which the model must be as before.
_SAME_FIELDS = (
    *("num_heads", "activation", "norm", "norm_epsilon", "residual"),
    *("stem", "position_embedding", "qkv_bias", "normalize_qk"),
)


def fit(
    pretrained: Pretrained, model: ViT, image_shape: tuple[int, int, int]
) -> dict[str, Any]:
    """Fit a ViT's weights to a model for other images or classes, to fine-tune it.

    The position embedding is resized to the new grid of patches, the patch embedding to
    the new `patch_size`, the first layer's kernel is adapted to the new number of
    channels, and the blocks are stacked if the model has `scan`. A head for another
    number of classes is left out.

    >>> import jax
    >>> model = ViT(10, patch_size=4, width=8, depth=1, num_heads=2)
    >>> image_BHWC = np.zeros((1, 8, 8, 3), np.float32)
    >>> variables = model.init(jax.random.key(0), image_BHWC)
    >>> pretrained = Pretrained(model, variables, (8, 8, 3))
    >>> fitted = fit(pretrained, model.clone(num_classes=5), (16, 16, 3))
    >>> fitted["params"]["pos_embedding"].shape, "head" in fitted["params"]
    ((1, 17, 8), False)

    Args:
        pretrained: the weights, as `load` returns them.
        model: the new model.
        image_shape: height, width and channels of its images.

    Returns:
        The new model's variables, but for a head that is left out.

    Raises:
        ValueError: naming a field in which the model must be as before, or arrays that
            it has not, or in other shapes.
    """
    old: Any = pretrained.model
    for field in _SAME_FIELDS:
        expected, got = getattr(old, field), getattr(model, field)
        if expected != got:
            raise ValueError(
                f"model.{field} must be {expected!r}, as in the weights, got {got!r}"
            )
    variables = without_other_head(pretrained.variables, old, model)
    params = (stack_blocks if model.scan else unstack_blocks)(variables["params"])
    sizes = (old.patch_size, model.patch_size)
    if "pos_embedding" in params:
        shapes = (pretrained.image_shape, image_shape)
        grids = [
            (s[0] // size, s[1] // size) for s, size in zip(shapes, sizes, strict=True)
        ]
        if grids[0] != grids[1]:
            resized = resize_position_embedding(params["pos_embedding"], *grids)
            params["pos_embedding"] = np.asarray(resized)
    channels = (pretrained.image_shape[2], image_shape[2])
    if model.stem == "conv":
        params["stem"] = _adapt_stem(params["stem"], *channels)
    else:
        embedding = _adapt_embedding(params["embedding"], *channels)
        if sizes[0] != sizes[1]:
            kernel = resize_patch_embedding(embedding["kernel"], *sizes)
            embedding = {**embedding, "kernel": np.asarray(kernel)}
        params["embedding"] = embedding
    fitted = {**variables, "params": params}
    check_variables(fitted, model, image_shape)
    return fitted


def _adapt_embedding(
    embedding: Mapping[str, Any], old_channels: int, channels: int
) -> Mapping[str, Any]:
    """Fit the kernel (P·P·C, D) to other channels."""
    if channels == old_channels:
        return embedding
    kernel = np.asarray(embedding["kernel"])
    width = kernel.shape[-1]
    kernel = adapt_channels(kernel.reshape(1, -1, old_channels, width), channels)
    return {**embedding, "kernel": kernel.reshape(-1, width)}


def _adapt_stem(
    stem: Mapping[str, Any], old_channels: int, channels: int
) -> Mapping[str, Any]:
    """Fit the first kernel, (3, 3, C, F), to other channels."""
    if channels == old_channels:
        return stem
    first = stem["conv_0"]
    kernel = adapt_channels(np.asarray(first["kernel"]), channels)
    return {**stem, "conv_0": {**first, "kernel": kernel}}
