"""Pictures of a run: curves, confusion matrix, mistakes, attention."""

import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle


def plot_curves(
    records: Sequence[dict[str, Any]], run_names: Sequence[str], path: pathlib.Path
) -> None:
    """Draw loss and accuracy of training and validation over the epochs.

    Of several runs it draws each one's validation, and the mean of the training.

    Args:
        records: the lines of metrics.jsonl.
        run_names: what each run is called.
        path: the PNG to write.
    """
    training, validation = "training", ["validation"]
    if len(run_names) > 1:
        training = "training, mean"
        validation = [f"validation, {name}" for name in run_names]
    figure = Figure(figsize=(10, 4 + len(run_names) / 12), layout="constrained")
    axes = figure.subplots(1, 2)
    epochs = [record["epoch"] for record in records]
    for axis, quantity, scale in zip(axes, ("loss", "accuracy"), (1, 100), strict=True):
        train_ER, val_ER = (
            scale
            * np.array([np.ravel(r[f"{split}_{quantity}"]) for r in records], float)
            for split in ("train", "val")
        )
        style = {"marker": "o", "markersize": 4}
        axis.plot(epochs, np.nanmean(train_ER, axis=1), label=training, **style)
        for label, val_E in zip(validation, val_ER.T, strict=True):
            axis.plot(epochs, val_E, label=label, **style)
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("cross-entropy (nats)")
    axes[1].set_ylabel("accuracy (%)")
    handles, labels = axes[0].get_legend_handles_labels()
    style = {"loc": "outside lower center", "fontsize": 8}
    figure.legend(handles, labels, ncols=min(len(labels), 3), **style)
    figure.savefig(path, dpi=120)


def plot_confusion(
    label_M: np.ndarray,
    prediction_M: np.ndarray,
    class_names: Sequence[str],
    path: pathlib.Path,
) -> None:
    """Draw how often each class is taken for each other one.

    Args:
        label_M: the true classes.
        prediction_M: the predicted classes.
        class_names: a name for each class.
        path: the PNG to write.
    """
    num_classes = len(class_names)
    count_YY = np.zeros((num_classes, num_classes), int)
    np.add.at(count_YY, (label_M, prediction_M), 1)
    share_YY = count_YY / np.maximum(count_YY.sum(axis=1, keepdims=True), 1)

    side = max(4.0, 1.5 + 0.45 * min(num_classes, 40))
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(share_YY, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axis, label="share of the true class", shrink=0.8)
    axis.set_xlabel("predicted class")
    axis.set_ylabel("true class")
    if num_classes <= 40:
        ticks = range(num_classes)
        axis.set_xticks(ticks, class_names, rotation=90)
        axis.set_yticks(ticks, class_names)
    if num_classes <= 20:
        for row, column in np.argwhere(count_YY):
            colour = "white" if share_YY[row, column] > 0.5 else "black"
            text = str(count_YY[row, column])
            style = {"ha": "center", "va": "center", "color": colour, "fontsize": 7}
            axis.text(column, row, text, **style)
    figure.savefig(path, dpi=120)


def plot_misclassified(
    image_MHWC: np.ndarray,
    label_M: np.ndarray,
    probability_MY: np.ndarray,
    class_names: Sequence[str],
    path: pathlib.Path,
    *,
    most: int = 24,
) -> None:
    """Draw the examples that the model is most sure of and wrong about.

    Args:
        image_MHWC: uint8.
        label_M: the true classes.
        probability_MY: the model's class probabilities.
        class_names: a name for each class.
        path: the PNG to write.
        most: how many to draw at the most.
    """
    prediction_M = probability_MY.argmax(axis=-1)
    confidence_M = probability_MY.max(axis=-1)
    wrong = np.flatnonzero(prediction_M != label_M)
    chosen = wrong[np.argsort(-confidence_M[wrong])][:most]

    names = np.asarray(class_names)
    columns = 8
    rows = max(1, -(-len(chosen) // columns))
    figure = Figure(figsize=(columns * 1.5, rows * 1.9 + 0.5), layout="constrained")
    figure.suptitle(
        f"{len(wrong)} of {len(label_M)} wrong; the {len(chosen)} most confident "
        "(predicted, probability; true class)"
    )
    titles = [
        f"{names[predicted]} {confidence:.0%}\n{names[truth]}"
        for predicted, confidence, truth in zip(
            prediction_M[chosen], confidence_M[chosen], label_M[chosen], strict=True
        )
    ]
    _draw_tiles(figure.subplots(), image_MHWC[chosen], columns, titles)
    figure.savefig(path, dpi=120)


def plot_attention(
    image_BHWC: np.ndarray,
    relevance_BP: np.ndarray,
    titles: Sequence[str],
    path: pathlib.Path,
    *,
    has_class_token: bool,
) -> None:
    """Draw images and, below them, how much attention each of their patches gets.

    Args:
        image_BHWC: uint8.
        relevance_BP: of each patch.
        titles: one for each image.
        path: the PNG to write.
        has_class_token: whether it is the class token that attends, or all patches.
    """
    batch, height, width, _ = image_BHWC.shape
    patch_size = round((height * width / relevance_BP.shape[1]) ** 0.5)
    grid = (height // patch_size, width // patch_size)

    figure = Figure(figsize=(1.5 * batch, 3.6), layout="constrained")
    reader = "the class token" if has_class_token else "all patches"
    figure.suptitle(f"Attention of {reader} in the last layer, mean over the heads")
    axis = figure.subplots()
    extents = _draw_tiles(axis, [*image_BHWC, *image_BHWC], batch, titles)
    for relevance_P, extent in zip(relevance_BP, extents[batch:], strict=True):
        axis.imshow(relevance_P.reshape(grid), cmap="magma", alpha=0.65, extent=extent)
    figure.savefig(path, dpi=120)


def plot_cross_attention(
    source_S: np.ndarray,
    target_T: np.ndarray,
    weights_LNTS: np.ndarray,
    path: pathlib.Path,
) -> None:
    """Draw how much each token of an answer attends to each one of its source.

    Args:
        source_S: the source's tokens.
        target_T: the answer's tokens.
        weights_LNTS: cross-attention weights of every layer and head.
        path: the PNG to write.
    """
    layers, heads = weights_LNTS.shape[:2]
    figure = Figure(figsize=(3.2 * heads, 3.2 * layers + 0.4), layout="constrained")
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
    relevance: dict[str, np.ndarray],
    path: pathlib.Path,
    *,
    patch_size: int,
) -> None:
    """Draw an image, its patches, what the model takes it for, and what it looks at.

    Args:
        image_HWC: uint8.
        probability_Y: the model's class probabilities.
        class_names: a name for each class.
        relevance: title → relevance_RC of each patch in rows and columns; sums to 1.
        path: the PNG to write.
        patch_size: side of a patch, pixels.
    """
    height, width, _ = image_HWC.shape
    columns = max(4, min(len(relevance), 6))
    rows = 1 + -(-len(relevance) // columns)
    figure = Figure(figsize=(2.2 * columns, 2.4 * rows), layout="constrained")
    grid = figure.add_gridspec(rows, columns)

    axis = figure.add_subplot(grid[0, 0])
    _show(axis, image_HWC)
    lines = {"color": "C1", "linewidth": 0.8}
    for y in range(patch_size, height, patch_size):
        axis.axhline(y - 0.5, **lines)
    for x in range(patch_size, width, patch_size):
        axis.axvline(x - 0.5, **lines)
    axis.set_title(f"patches of {patch_size}x{patch_size}", fontsize=9)
    axis.axis("off")

    likeliest = np.argsort(-probability_Y)[:5]
    axis = figure.add_subplot(grid[0, 1:])
    axis.barh([class_names[y] for y in likeliest], probability_Y[likeliest])
    axis.invert_yaxis()
    axis.set_xlim(0, 1.15)
    axis.set_xticks([0, 0.5, 1])
    for row, y in enumerate(likeliest):
        probability = float(probability_Y[y])
        axis.text(probability + 0.01, row, f"{probability:.1%}", va="center")
    axis.set_title("probability of the likeliest classes", fontsize=9)

    for number, (title, relevance_RC) in enumerate(relevance.items()):
        axis = figure.add_subplot(grid[1 + number // columns, number % columns])
        _show(axis, image_HWC)
        extent = (-0.5, width - 0.5, height - 0.5, -0.5)
        axis.imshow(relevance_RC, cmap="magma", alpha=0.65, extent=extent)
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    figure.savefig(path, dpi=120)


def plot_attention_distance(distance_LN: np.ndarray, path: pathlib.Path) -> None:
    """Draw how far each head of each layer looks.

    Args:
        distance_LN: pixels.
        path: the PNG to write.
    """
    depth, num_heads = distance_LN.shape
    figure = Figure(figsize=(5, 3.5), layout="constrained")
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
    similarity_PP: np.ndarray, grid: tuple[int, int], path: pathlib.Path
) -> None:
    """Draw for each patch how alike its position embedding is to all others'.

    Args:
        similarity_PP: cosines.
        grid: number of rows and of columns of patches.
        path: the PNG to write.
    """
    rows, columns = grid
    side = min(0.9, 12 / max(grid))
    figure = Figure(
        figsize=(side * columns + 1.6, side * rows + 0.9), layout="constrained"
    )
    figure.suptitle("Cosine similarity of position embeddings", fontsize=10)
    axis = figure.subplots()
    tiles = similarity_PP.reshape(-1, *grid)
    _draw_tiles(axis, tiles, columns, cmap="RdBu_r", vmin=-1, vmax=1)
    figure.supxlabel("column of the patch", fontsize=9)
    figure.supylabel("row of the patch", fontsize=9)
    figure.colorbar(axis.images[-1])
    figure.savefig(path, dpi=120)


def _draw_tiles(
    axis: Any,
    tiles: Iterable[np.ndarray],
    columns: int,
    titles: Sequence[str] = (),
    **style: Any,
) -> list[tuple[float, float, float, float]]:
    """Draw images of one size side by side, row by row.

    In a single axis, as to make and to lay out an axis for each takes far longer.

    Returns:
        Where each lies: left, right, bottom and top.
    """
    axis.axis("off")
    num_lines = max((title.count("\n") + 1 for title in titles), default=0)
    above = 0.05 + 0.13 * num_lines
    extents = []
    for place, tile in enumerate(tiles):
        row, column = divmod(place, columns)
        height = tile.shape[0] / tile.shape[1]
        left, top = 1.08 * column, (height + above) * row
        extents.append((left, left + 1, top + height, top))
        _show(axis, tile, extent=extents[-1], **style)
        frame = Rectangle((left, top), 1, height, fill=False, linewidth=0.5)
        axis.add_patch(frame)
    for title, (left, _, _, top) in zip(titles, extents, strict=False):
        where = {"ha": "center", "va": "bottom", "fontsize": 9}
        axis.text(left + 0.5, top - 0.03, title, **where)
    if extents:
        axis.set_xlim(-0.02, 1.08 * columns)
        axis.set_ylim(extents[-1][2] + 0.02, -above)
    return extents


def _show(axis: Any, image: np.ndarray, **style: Any) -> None:
    """Draw one image, (H, W, C) or (H, W), grey if it has one channel."""
    if image.ndim == 3 and image.shape[-1] == 1:
        image, style = image[..., 0], {"cmap": "gray", **style}
    axis.imshow(image, **style)
