"""Classify pictures with a trained model: python -m train_jax.predict."""

import argparse
import csv
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import rich.console
import rich.progress

from train_jax.cli import command, console
from train_jax.inference import flags
from train_jax.inference.classifier import Classifier
from train_jax.inference.pictures import PictureReader, add_input_flags, list_files

_PROGRAM = "python -m train_jax.predict"


def main(arguments: list[str]) -> int:
    """Parse the command line, predict, and return the exit code."""
    return command.run(_make_parser(), _run, arguments)


def _run(options: argparse.Namespace) -> int:
    for name in ("top_k", "batch_size"):
        if getattr(options, name) < 1:
            raise ValueError(
                f"--{name} must be at least 1, got {getattr(options, name)}"
            )
    files = list_files(options.inputs)
    trained = flags.load_named_model(options)
    batch_size = min(options.batch_size, len(files))
    classifier = Classifier(trained, batch_size=batch_size)
    reader = PictureReader(
        trained, background=options.background, invert=options.invert
    )
    predictions = _predict(classifier, reader, files, options)
    if options.json:
        _print_json(predictions, reader.errors, classifier)
    elif options.csv:
        _print_csv(predictions, min(options.top_k, classifier.task.num_classes))
    else:
        _print_table(predictions)
    for message in reader.messages:
        print(f"{_PROGRAM}: {message}", file=sys.stderr)
    return console.FAILED if reader.errors else 0


def _make_parser() -> argparse.ArgumentParser:
    parser = flags.make_model_parser(
        _PROGRAM, "Print the likeliest classes of pictures, with their probabilities."
    )
    add_input_flags(parser)
    parser.add_argument(
        "--top_k", type=int, default=5, help="classes of each picture (default: 5)"
    )
    parser.add_argument(
        "--batch_size", type=int, default=64, help="pictures at once (default: 64)"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object")
    form.add_argument("--csv", action="store_true", help="print CSV")
    return parser


def _predict(
    classifier: Classifier,
    reader: PictureReader,
    files: list[pathlib.Path],
    options: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Read and classify, a batch at a time, under a progress bar."""
    predictions = []
    size, task = options.batch_size, classifier.task
    console = rich.console.Console(stderr=True)
    is_hidden = len(files) <= 1 or not console.is_terminal
    with rich.progress.Progress(
        console=console, transient=True, disable=is_hidden
    ) as progress:
        bar = progress.add_task("pictures", total=len(files))
        for start in range(0, len(files), size):
            images = []
            for file in files[start : start + size]:
                if (image := reader.read(file)) is not None:
                    images.append((file, image))
                progress.advance(bar)
            if not images:
                continue
            probability_BY = classifier([image for _, image in images])
            for (file, _), probability_Y in zip(images, probability_BY, strict=True):
                top = top_classes(probability_Y, task.class_names, options.top_k)
                predictions.append({"file": str(file), "top": list(top)})
    return predictions


def top_classes(
    probability_Y: np.ndarray, class_names: tuple[str, ...], count: int
) -> Iterator[dict[str, Any]]:
    """Name the most probable classes, with their probabilities."""
    for label in np.argsort(-probability_Y, kind="stable")[:count]:
        yield {
            "class": class_names[label],
            "probability": float(probability_Y[label]),
        }


def _print_json(
    predictions: list[dict[str, Any]], errors: dict[str, str], classifier: Classifier
) -> None:
    result = {
        "model": classifier.trained.name,
        "predictions": predictions,
        "errors": [{"file": file, "error": text} for file, text in errors.items()],
    }
    print(json.dumps(result, ensure_ascii=False))


def _print_csv(predictions: list[dict[str, Any]], count: int) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    columns = [
        f"{name}_{i + 1}" for i in range(count) for name in ("class", "probability")
    ]
    writer.writerow(["file", *columns])
    for prediction in predictions:
        row = [x for top in prediction["top"] for x in top.values()]
        writer.writerow([prediction["file"], *row])


def _print_table(predictions: list[dict[str, Any]]) -> None:
    width = max((len(prediction["file"]) for prediction in predictions), default=0)
    for prediction in predictions:
        classes = "  ".join(
            f"{top['class']} {top['probability']:.1%}" for top in prediction["top"]
        )
        print(f"{prediction['file']:{width}}  {classes}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
