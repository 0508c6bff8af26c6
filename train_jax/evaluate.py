"""Evaluate a trained model on a split: python -m train_jax.evaluate."""

from train_jax.cli.huge_pages import restart_with_huge_pages

if __name__ == "__main__":
    restart_with_huge_pages()  # before the imports, which take a while


import argparse
import dataclasses
import json
import sys
from typing import Any

import jax
import numpy as np
import rich.box
import rich.console
import rich.table

from train_jax import data
from train_jax.cli import command
from train_jax.config.fields import DatasetConfig
from train_jax.data import ImageSplit, SequenceSplit
from train_jax.data.split import first_change
from train_jax.data.streamed import Source, StreamedImages
from train_jax.devices import policy, sharding
from train_jax.devices.folders import local_path
from train_jax.inference import flags
from train_jax.inference.classifier import fit_image
from train_jax.inference.scores import (
    calibration_error,
    class_accuracies,
    top_k_accuracy,
)
from train_jax.output import plots
from train_jax.run.evaluate import Evaluation, Evaluator
from train_jax.run.splits import load
from train_jax.run.trained_model import TrainedModel
from train_jax.tasks import Classification, Task

_PROGRAM = "python -m train_jax.evaluate"


def main(arguments: list[str]) -> int:
    """Parse the command line, evaluate, and return the exit code."""
    return command.run(_make_parser(), _run, arguments)


def _run(options: argparse.Namespace) -> int:
    out = None if options.out is None else local_path(options.out, "--out")
    if options.batch_size < 1:
        raise ValueError(f"--batch_size must be at least 1, got {options.batch_size}")
    trained = flags.load(options)
    name, split = _load_split(options, trained)
    if out is not None and not isinstance(split, ImageSplit):
        raise ValueError(f"--out is for images, which {name!r} has not")
    evaluation = evaluate(trained, split, batch_size=options.batch_size)
    result = {
        "model": trained.name,
        "step": trained.step,
        "dataset": name,
        "split": options.split,
        **summarise(split, evaluation),
    }
    if out is not None and isinstance(split, ImageSplit):
        out.mkdir(parents=True, exist_ok=True)
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
    parser = flags.make_parser(
        _PROGRAM, "Evaluate a trained model on a split of a data set."
    )
    parser.add_argument(
        "--dataset", metavar="NAME", help="data set (default: that of the training)"
    )
    parser.add_argument(
        "--split", default="test", help='a split, or one slice of it (default: "test")'
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
) -> tuple[str, ImageSplit | SequenceSplit]:
    """Load the split, its images of the size that the model takes.

    Raises:
        ValueError: if the model has another number of classes.
    """
    own, given = trained.dataset, options.dataset
    if given is None:
        if own is None:
            raise ValueError("--dataset must name a data set, as weights don't say one")
        given = own.name
    name = data.canonical_name(given)
    if own is not None and name == data.canonical_name(own.name):
        data_dir = options.data_dir or own.data_dir
        own = dataclasses.replace(own, data_dir=data_dir)
        (split,) = load(own, options.split)
        _check_unchanged(split, trained.task, name)
        return name, split
    task = trained.task
    # The pictures of a folder may be of many sizes.
    streaming = True if data.is_folder(name) else "auto"
    dataset = DatasetConfig(name=name, data_dir=options.data_dir, streaming=streaming)
    (split,) = load(dataset, options.split)
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
    images: Any = split.image_BHWC
    if split.is_streamed:
        source = _Fitted(trained, images.source)
        images = StreamedImages(source, images.place_M, task.image_shape, resize=None)
    elif images.shape[1:] != task.image_shape:
        images = np.stack([fit_image(trained, image_HWC) for image_HWC in images])
    return name, dataclasses.replace(split, image_BHWC=images)


def _check_unchanged(split: ImageSplit | SequenceSplit, task: Task, name: str) -> None:
    """Raise ValueError if the training's data set now has other classes or images."""
    if not isinstance(split, ImageSplit) or not isinstance(task, Classification):
        return
    change = first_change(task.class_names, split.class_names)
    change = change or first_change(task.image_shape, split.image_BHWC.shape[1:])
    if change:
        raise ValueError(
            f"dataset {name!r} is not that of the training, which had {change}"
        )


@dataclasses.dataclass(frozen=True)
class _Fitted:
    """Images brought to the size that a model takes, see `Source`."""

    trained: TrainedModel
    source: Source

    def read_image(self, place: int) -> np.ndarray:
        """Read an image, and fit it."""
        return fit_image(self.trained, self.source.read_image(place))

    def read_label(self, place: int) -> int:
        """Read the label of an image."""
        return self.source.read_label(place)


def evaluate(
    trained: TrainedModel, split: ImageSplit | SequenceSplit, *, batch_size: int = 256
) -> Evaluation:
    """Evaluate a model on a split of the examples it takes; see `Evaluator`."""
    eval_step = trained.task.make_eval_step(trained.model)

    def with_run_axis(variables: Any, examples: Any) -> Any:
        return jax.tree.map(lambda x: x[None], eval_step(variables, *examples))

    evaluator = Evaluator(
        with_run_axis,
        batch_size=min(batch_size, len(split)),
        mesh=sharding.make_mesh(devices=jax.devices()[:1]),
        jit=policy.jit_of_model(trained.model, platform=jax.default_backend()),
    )
    return evaluator(jax.device_put(trained.variables), split)


def summarise(
    split: ImageSplit | SequenceSplit, evaluation: Evaluation
) -> dict[str, Any]:
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
