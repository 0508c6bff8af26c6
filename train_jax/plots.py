"""Pictures of a run: curves, confusion matrix, mistakes, attention."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure


def plot_curves(records: Sequence[dict[str, Any]], path: pathlib.Path) -> None:
    """Draw loss and accuracy of training and validation over the epochs.

    Args:
        records: the lines of metrics.jsonl.
        path: the PNG to write.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    epochs = [record["epoch"] for record in records]
    for axis, quantity, scale in zip(axes, ("loss", "accuracy"), (1, 100), strict=True):
        for split, label in (("train", "training"), ("val", "validation")):
            values = [scale * record[f"{split}_{quantity}"] for record in records]
            axis.plot(epochs, values, marker="o", markersize=4, label=label)
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        axis.legend()
    axes[0].set_ylabel("cross-entropy (nats)")
    axes[1].set_ylabel("accuracy (%)")
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
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes:
        axis.axis("off")
    for axis, index in zip(axes, chosen, strict=False):
        _show(axis, image_MHWC[index])
        predicted = names[prediction_M[index]]
        truth = names[label_M[index]]
        axis.set_title(f"{predicted} {confidence_M[index]:.0%}\n{truth}", fontsize=9)
    figure.savefig(path, dpi=120)


def plot_attention(
    image_BHWC: np.ndarray,
    weights_BNTT: np.ndarray,
    titles: Sequence[str],
    path: pathlib.Path,
    *,
    has_class_token: bool,
) -> None:
    """Draw images and, below them, how much attention each of their patches gets.

    Args:
        image_BHWC: uint8.
        weights_BNTT: a layer's attention weights.
        titles: one for each image.
        path: the PNG to write.
        has_class_token: whether token 0 is the class token; then its attention is
            drawn, otherwise the mean over all patches.
    """
    batch, height, width, _ = image_BHWC.shape
    mean_BTT = weights_BNTT.mean(axis=1)
    score_BT = mean_BTT[:, 0, 1:] if has_class_token else mean_BTT.mean(axis=1)
    patch_size = round((height * width / score_BT.shape[1]) ** 0.5)
    score_BRC = score_BT.reshape(batch, height // patch_size, width // patch_size)

    figure = Figure(figsize=(1.5 * batch, 3.6), layout="constrained")
    reader = "the class token" if has_class_token else "all patches"
    figure.suptitle(f"Attention of {reader} in the last layer, mean over the heads")
    axes = figure.subplots(2, batch, squeeze=False)
    for column in range(batch):
        _show(axes[0, column], image_BHWC[column])
        axes[0, column].set_title(titles[column], fontsize=9)
        _show(axes[1, column], image_BHWC[column])
        extent = (-0.5, width - 0.5, height - 0.5, -0.5)
        axes[1, column].imshow(
            score_BRC[column], cmap="magma", alpha=0.65, extent=extent
        )
    for axis in axes.flat:
        axis.axis("off")
    figure.savefig(path, dpi=120)


def _show(axis: Any, image_HWC: np.ndarray) -> None:
    """Draw one image, grey if it has one channel."""
    grey = image_HWC.shape[-1] == 1
    axis.imshow(image_HWC[..., 0] if grey else image_HWC, cmap="gray" if grey else None)
