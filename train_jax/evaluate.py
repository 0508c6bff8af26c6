"""Evaluate a trained model on a split: python -m train_jax.evaluate."""

from train_jax.cli.huge_pages import restart_with_huge_pages

if __name__ == "__main__":
    restart_with_huge_pages()  # before the imports, which take a while


import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import rich.box
import rich.console
import rich.table

from train_jax import data
from train_jax.cli import command
from train_jax.config.fields import DatasetConfig
from train_jax.data import ImageSplit, Split
from train_jax.data.streamed import StreamedImages
from train_jax.inference import flags
from train_jax.inference.classifier import fit_image
from train_jax.inference.scores import (
    calibration_error,
    class_accuracies,
    top_k_accuracy,
)
from train_jax.output import plots
from train_jax.run.evaluator import Evaluation
from train_jax.run.runs import Runs
from train_jax.run.setup import make_evaluator
from train_jax.run.splits import load_named_splits
from train_jax.run.trained_model import TrainedModel, require_images
from train_jax.storage.paths import local_path
from train_jax.tasks import Classification

_PROGRAM = "python -m train_jax.evaluate"


def main(arguments: list[str]) -> int:
    """Parse the command line, evaluate, and return the exit code."""
    return command.run(_make_parser(), _run, arguments)


def _run(options: argparse.Namespace) -> int:
    out = None if options.out is None else local_path(options.out, "--out")
    if options.batch_size < 1:
        raise ValueError(f"--batch_size must be at least 1, got {options.batch_size}")
    trained = flags.load_named_model(options)
    name, cut, split = _load_split(options, trained)
    if out is not None and not isinstance(split, ImageSplit):
        raise ValueError(f"--out needs a data set of images, got {name!r}")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    evaluation = evaluate(trained, split, batch_size=options.batch_size)
    if not np.isfinite(evaluation.loss_R).all():
        raise ValueError(f"the loss of {trained.name!r} is not finite")
    result = {
        "model": trained.name,
        "step": trained.step,
        "dataset": name,
        "split": cut,
        **compute_scores(split, evaluation),
    }
    if out is not None and isinstance(split, ImageSplit):
        predicted_M = evaluation.output_RM[0].argmax(axis=-1)
        picture = out / "confusion_matrix.png"
        plots.plot_confusion(split.label_B, predicted_M, split.class_names, picture)
        print(picture, file=sys.stderr)
    if options.json:
        print(json.dumps(result, ensure_ascii=False))
    else:
        _print_result(result)
    return 0


def _make_parser() -> argparse.ArgumentParser:
    parser = flags.make_model_parser(
        _PROGRAM, "Evaluate a trained model on a split of a data set."
    )
    parser.add_argument(
        "--dataset", metavar="NAME", help="data set (default: that of the training)"
    )
    parser.add_argument(
        "--split",
        help="a split, or one slice of it (default: dataset.test_split of the "
        'training, "test" of another set)',
    )
    parser.add_argument("--data_dir", help="folder of prepared TFDS sets")
    parser.add_argument(
        "--batch_size", type=int, default=256, help="examples at once (default: 256)"
    )
    parser.add_argument("--out", help="folder for the picture of the confusion matrix")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object instead of a table"
    )
    return parser


def _load_split(
    options: argparse.Namespace, trained: TrainedModel
) -> tuple[str, str, Split]:
    """Load the split, its images of the size that the model takes.

    Returns:
        The set's name, the split's, and the split.

    Raises:
        ValueError: if the model has another number of classes.
    """
    own, given = trained.dataset, options.dataset
    if given is None:
        if own is None:
            raise ValueError("--dataset is required with --weights")
        given = own.name
    name = data.canonical_name(given)
    if own is not None and data.is_same_set(name, own.name):
        data_dir = options.data_dir or own.data_dir
        own = dataclasses.replace(own, name=name, data_dir=data_dir)
        cut = options.split or own.test_split
        return name, cut, trained.load_split(own, cut)
    task, cut = trained.task, options.split or "test"
    # The pictures of a folder may be of many sizes.
    streaming = True if data.is_folder(name) else "auto"
    dataset = DatasetConfig(name=name, data_dir=options.data_dir, streaming=streaming)
    (split,) = load_named_splits(dataset, cut)
    if not isinstance(split, ImageSplit) or not isinstance(task, Classification):
        raise ValueError(f"--dataset {name!r} and the model must be of images")
    if split.num_classes != task.num_classes:
        raise ValueError(
            f"--dataset {name!r} has {split.num_classes} classes, the model "
            f"{task.num_classes}"
        )
    if own is not None and split.class_names != task.class_names:
        print(
            f"warning: the classes of {name!r} have other names than the model's, such "
            f"as {split.class_names[0]!r} and {task.class_names[0]!r}",
            file=sys.stderr,
        )
    return name, cut, fit_split(trained, split)


def fit_split(trained: TrainedModel, split: ImageSplit) -> ImageSplit:
    """Bring images to the size that a model takes, when they are asked for.

    In that size all of them may need more memory than there is.
    """
    images: Any = split.image_BHWC
    shape = require_images(trained).image_shape
    if split.is_streamed:
        read, place_M = images.source.read_image, images.place_M
    elif images.shape[1:] == shape and trained.crop_fraction == 1:
        return split
    else:
        read, place_M = images.__getitem__, np.arange(len(images))
    source: Any = _Fitted(trained, read)  # labels are those of the split
    images = StreamedImages(source, place_M, shape, resize=None)
    return dataclasses.replace(split, image_BHWC=images)


@dataclasses.dataclass(frozen=True)
class _Fitted:
    """Images brought to the size that a model takes, see `StreamedImages`."""

    trained: TrainedModel
    read: Callable[[int], np.ndarray]

    def read_image(self, place: int) -> np.ndarray:
        """Read an image, and fit it."""
        return fit_image(self.trained, self.read(place))


def evaluate(
    trained: TrainedModel, split: Split, *, batch_size: int = 256
) -> Evaluation:
    """Evaluate a model on a split of the examples it takes; see `Evaluator`."""
    evaluator = make_evaluator(
        trained.model,
        trained.task,
        Runs.combine([0], {}, devices=jax.devices()[:1]),
        batch_size=min(batch_size, len(split)),
    )
    return evaluator(jax.device_put(trained.variables), split)


def compute_scores(split: Split, evaluation: Evaluation) -> dict[str, Any]:
    """Turn an evaluation of one model into values for JSON."""
    result: dict[str, Any] = {
        "num_examples": len(split),
        "accuracy": float(evaluation.accuracy_R[0]),
        "loss": float(evaluation.loss_R[0]),
    }
    if not isinstance(split, ImageSplit):
        return result
    probability_MY, names = evaluation.output_RM[0], split.class_names
    label_M = np.asarray(split.label_B)
    classes = class_accuracies(probability_MY.argmax(axis=-1), label_M)
    return result | {
        "top5_accuracy": top_k_accuracy(probability_MY, label_M, 5),
        "calibration_error": calibration_error(probability_MY, label_M),
        "classes": {
            names[label]: {"num_examples": count, "accuracy": accuracy}
            for label, (count, accuracy) in classes.items()
        },
    }


def _print_result(result: dict[str, Any]) -> None:
    """Print the scores, and a table of the classes."""
    step = "" if result["step"] is None else f", step {result['step']:,}"
    print(
        f"{result['model']}{step}, on {result['num_examples']:,} examples of "
        f"{result['dataset']}, {result['split']}"
    )
    forms = {
        "accuracy": ".2%",
        "top5_accuracy": ".2%",
        "loss": ".4f",
        "calibration_error": ".2%",
    }
    for name, form in forms.items():
        if name in result:
            print(f"{name.replace('_', ' '):18} {result[name]:{form}}")
    if "classes" not in result:
        return
    table = rich.table.Table(box=rich.box.SIMPLE)
    table.add_column("class")
    for heading in ("examples", "accuracy"):
        table.add_column(heading, justify="right")
    for name, scores in result["classes"].items():
        table.add_row(name, f"{scores['num_examples']:,}", f"{scores['accuracy']:.2%}")
    rich.console.Console(highlight=False, markup=False).print(table)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
