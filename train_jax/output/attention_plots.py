"""Plot what a model attends to, and its position embeddings."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from train_jax.output.tiles import (
    draw_tiles,
    escape_dollars,
    make_figure,
    show_image,
)


def plot_attention(
    image_BHWC: np.ndarray,
    relevance_BT: np.ndarray,
    titles: Sequence[str],
    path: pathlib.Path,
    *,
    has_class_token: bool,
) -> None:
    """Draw images and, below them, a heat map of the attention to their patches.

    Args:
        image_BHWC: uint8.
        relevance_BT: attention that each patch gets.
        titles: one for each image.
        path: the PNG to write.
        has_class_token: whether the query is the class token, or the patches are.
    """
    batch, height, width, _ = image_BHWC.shape
    patch_size = round((height * width / relevance_BT.shape[1]) ** 0.5)
    grid = (height // patch_size, width // patch_size)

    figure = make_figure(1.5 * batch, 3.6)
    query = "the class token" if has_class_token else "the pooled patches"
    figure.suptitle(f"Attention of {query} in the last layer, mean over the heads")
    axis = figure.subplots()
    extents = draw_tiles(axis, [*image_BHWC, *image_BHWC], batch, titles)
    for relevance_T, extent in zip(relevance_BT, extents[batch:], strict=True):
        axis.imshow(relevance_T.reshape(grid), cmap="magma", alpha=0.65, extent=extent)
    figure.savefig(path, dpi=120)


def plot_cross_attention(
    source_S: np.ndarray,
    target_T: np.ndarray,
    weights_LNTS: np.ndarray,
    path: pathlib.Path,
) -> None:
    """Draw the cross-attention weights of every layer and head.

    Args:
        source_S: the source's tokens.
        target_T: the decoded tokens.
        weights_LNTS: cross-attention weights.
        path: the PNG to write.
    """
    layers, heads = weights_LNTS.shape[:2]
    figure = make_figure(3.2 * heads, 3.2 * layers + 0.4)
    figure.suptitle("Attention of each decoded token to the source")
    axes: Any = figure.subplots(layers, heads, squeeze=False)
    for layer, head in np.ndindex(layers, heads):
        axis = axes[layer, head]
        axis.imshow(weights_LNTS[layer, head], cmap="magma", vmin=0, vmax=1)
        axis.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=9)
        axis.set_xticks(range(len(source_S)), source_S.tolist(), fontsize=7)
        axis.set_yticks(range(len(target_T)), target_T.tolist(), fontsize=7)
    for axis in axes[-1]:
        axis.set_xlabel("source")
    for axis in axes[:, 0]:
        axis.set_ylabel("decoded")
    figure.savefig(path, dpi=120)


def plot_explanation(
    image_HWC: np.ndarray,
    probability_Y: np.ndarray,
    class_names: Sequence[str],
    relevance: Mapping[str, np.ndarray],
    path: pathlib.Path,
    *,
    patch_size: int | None,
) -> None:
    """Draw an image, its patches, the most probable classes and the relevance maps.

    Args:
        image_HWC: uint8.
        probability_Y: the model's class probabilities.
        class_names: a name for each class.
        relevance: title → relevance of each patch or position, (rows, columns).
        path: the PNG to write.
        patch_size: side of a patch, pixels; None if there are none.
    """
    columns = max(4, min(len(relevance), 6))
    rows = 1 + -(-len(relevance) // columns)
    figure = make_figure(2.2 * columns, 2.4 * rows)
    grid = figure.add_gridspec(rows, columns)
    _draw_patches(figure.add_subplot(grid[0, 0]), image_HWC, patch_size)
    _draw_probabilities(figure.add_subplot(grid[0, 1:]), probability_Y, class_names)
    for number, (title, map_of_patches) in enumerate(relevance.items()):
        axis = figure.add_subplot(grid[1 + number // columns, number % columns])
        show_image(axis, image_HWC)
        height, width, _ = image_HWC.shape
        extent = (-0.5, width - 0.5, height - 0.5, -0.5)
        axis.imshow(
            map_of_patches,
            cmap="magma",
            alpha=0.65,
            extent=extent,
            interpolation="bicubic" if patch_size is None else "nearest",
        )
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    figure.savefig(path, dpi=120)


def _draw_patches(axis: Any, image_HWC: np.ndarray, patch_size: int | None) -> None:
    """Draw an image with lines between its patches, if it has any."""
    height, width, _ = image_HWC.shape
    show_image(axis, image_HWC)
    if patch_size is None:
        axis.set_title(f"{height}x{width} pixels", fontsize=9)
        return
    lines = {"color": "C1", "linewidth": 0.8}
    for y in range(patch_size, height, patch_size):
        axis.axhline(y - 0.5, **lines)
    for x in range(patch_size, width, patch_size):
        axis.axvline(x - 0.5, **lines)
    axis.set_title(f"patches of {patch_size}x{patch_size}", fontsize=9)
    axis.axis("off")


def _draw_probabilities(
    axis: Any, probability_Y: np.ndarray, class_names: Sequence[str], count: int = 5
) -> None:
    """Draw bars of the most probable classes."""
    best = np.argsort(-probability_Y)[:count]
    names = [escape_dollars(class_names[int(y)]) for y in best]
    bars = axis.barh(range(len(names)), probability_Y[best], tick_label=names)
    axis.bar_label(bars, [f"{p:.1%}" for p in probability_Y[best]], padding=2)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.15)
    axis.set_xticks([0, 0.5, 1])
    axis.set_title("probability of the likeliest classes", fontsize=9)


def plot_attention_distance(distance_LN: np.ndarray, path: pathlib.Path) -> None:
    """Draw the mean attention distance of every head against its layer.

    Args:
        distance_LN: mean attention distance, pixels.
        path: the PNG to write.
    """
    depth, num_heads = distance_LN.shape
    figure = make_figure(5, 3.5)
    axis = figure.subplots()
    layers = np.repeat(np.arange(1, depth + 1), num_heads)
    axis.plot(layers, distance_LN.ravel(), "o", alpha=0.6)
    axis.set_xlabel("layer")
    axis.set_xticks(np.arange(1, depth + 1))
    axis.set_ylabel("mean attention distance (pixels)")
    axis.set_title(f"Each of the {num_heads} heads of each layer", fontsize=10)
    axis.set_ylim(0, 1.1 * distance_LN.max())
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def plot_position_similarity(
    similarity_TT: np.ndarray, grid: tuple[int, int], path: pathlib.Path
) -> None:
    """Draw the cosine similarity of the position embeddings of all patches.

    Args:
        similarity_TT: cosine similarity of each two patches.
        grid: number of rows and of columns of patches.
        path: the PNG to write.
    """
    rows, columns = grid
    side = min(0.9, 12 / max(grid))
    figure = make_figure(side * columns + 1.6, side * rows + 0.9)
    figure.suptitle("Cosine similarity of position embeddings", fontsize=10)
    axis = figure.subplots()
    tiles = similarity_TT.reshape(-1, *grid)
    draw_tiles(axis, tiles, columns, cmap="RdBu_r", vmin=-1, vmax=1)
    figure.supxlabel("column of the patch", fontsize=9)
    figure.supylabel("row of the patch", fontsize=9)
    figure.colorbar(axis.images[-1])
    figure.savefig(path, dpi=120)
