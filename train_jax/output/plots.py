"""Plot a run: loss and accuracy curves, confusion matrix, misclassified images."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from train_jax.output.tiles import draw_tiles, escape_dollars, make_figure


def plot_curves(
    records: Sequence[dict[str, Any]], run_names: Sequence[str], path: pathlib.Path
) -> None:
    """Draw loss and accuracy of training and validation over the epochs.

    For several runs: the validation of each, and the mean of the training.

    Args:
        records: the lines of metrics.jsonl.
        run_names: one for each run.
        path: the PNG to write.
    """
    training, validation = "training", ["validation"]
    if len(run_names) > 1:
        training = "training, mean"
        validation = [f"validation, {name}" for name in run_names]
    figure = make_figure(10, 4 + len(run_names) / 12)
    axes = figure.subplots(1, 2)
    epochs = [record["epoch"] for record in records]
    for axis, quantity, scale in zip(axes, ("loss", "accuracy"), (1, 100), strict=True):
        curves_ER = {
            split: scale * np.array([np.ravel(r[name]) for r in records], float)
            for split in ("train", "val")
            if (name := f"{split}_{quantity}") in records[0]
        }
        style = {"marker": "o", "markersize": 4}
        train_E = np.nanmean(curves_ER["train"], axis=1)
        axis.plot(epochs, train_E, label=training, **style)
        if "val" in curves_ER:
            for label, val_E in zip(validation, curves_ER["val"].T, strict=True):
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
    """Draw the confusion matrix: the share of each class predicted as each other.

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
    figure = make_figure(side + 1, side)
    axis = figure.subplots()
    image = axis.imshow(share_YY, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axis, label="share of the true class", shrink=0.8)
    axis.set_xlabel("predicted class")
    axis.set_ylabel("true class")
    if num_classes <= 40:
        ticks = range(num_classes)
        names = list(map(escape_dollars, class_names))
        axis.set_xticks(ticks, names, rotation=90)
        axis.set_yticks(ticks, names)
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
    max_images: int = 24,
) -> None:
    """Draw the most confident of the wrong predictions.

    Args:
        image_MHWC: uint8.
        label_M: the true classes.
        probability_MY: the model's class probabilities.
        class_names: a name for each class.
        path: the PNG to write.
        max_images: how many to draw at most.
    """
    prediction_M = probability_MY.argmax(axis=-1)
    confidence_M = probability_MY.max(axis=-1)
    wrong = np.flatnonzero(prediction_M != label_M)
    chosen = wrong[np.argsort(-confidence_M[wrong])][:max_images]

    names = np.asarray(class_names)
    columns = 8
    rows = max(1, -(-len(chosen) // columns))
    figure = make_figure(columns * 1.5, rows * 1.9 + 0.5)
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
    draw_tiles(figure.subplots(), image_MHWC[chosen], columns, titles)
    figure.savefig(path, dpi=120)
