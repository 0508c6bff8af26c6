"""Ask a trained model what is on pictures: python -m train_jax.predict."""

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

from train_jax.cli import command, model_flags
from train_jax.data.picture import decode_picture
from train_jax.data.pictures import find_pictures
from train_jax.devices.folders import local_path
from train_jax.run.build import border_brightness
from train_jax.run.classifier import Classifier

_PROGRAM = "python -m train_jax.predict"

# A border is dark below the one, and bright above the other.
_DARK, _BRIGHT = 0.25, 0.5


def main(arguments: list[str]) -> int:
    """Parse the command line, predict, and return the exit code."""
    options = _make_parser().parse_args(arguments)
    return command.run(_PROGRAM, lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    for name in ("top_k", "batch_size"):
        if getattr(options, name) < 1:
            raise ValueError(
                f"--{name} must be at least 1, got {getattr(options, name)}"
            )
    if not 0 <= options.background <= 255:
        raise ValueError(f"--background must be in [0, 255], got {options.background}")
    files = list_files(options.inputs)
    classifier = Classifier(model_flags.load(options), batch_size=options.batch_size)
    reader = PictureReader(
        classifier, background=options.background, invert=options.invert
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
    return 1 if reader.errors else 0


def _make_parser() -> argparse.ArgumentParser:
    parser = model_flags.make_parser(
        _PROGRAM, "Tell the classes of pictures, with their probabilities."
    )
    add_input_flags(parser)
    parser.add_argument(
        "--top_k", type=int, default=5, help="so many classes of each (default: 5)"
    )
    parser.add_argument(
        "--batch_size", type=int, default=64, help="pictures at once (default: 64)"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object")
    form.add_argument("--csv", action="store_true", help="print CSV")
    return parser


def add_input_flags(parser: argparse.ArgumentParser, *, nargs: str = "+") -> None:
    """Add the arguments that name pictures and say how they are read."""
    parser.add_argument(
        "inputs",
        nargs=nargs,
        metavar="PICTURE",
        help='picture files, folders of them, or "-" for paths on standard input',
    )
    parser.add_argument(
        "--background",
        type=int,
        default=255,
        metavar="GREY",
        help="what shines through transparent pixels, 0 to 255 (default: 255, white)",
    )
    parser.add_argument(
        "--invert", action="store_true", help="turn dark into bright, and back"
    )


def list_files(inputs: list[str]) -> list[pathlib.Path]:
    """List the files that the arguments name.

    Raises:
        ValueError: if a folder holds no picture, or nothing is named at all.
    """
    lines = (line.rstrip("\r\n") for line in sys.stdin) if "-" in inputs else ()
    names = [name for name in inputs if name != "-"] + [line for line in lines if line]
    files = find_pictures(local_path(name, "a picture") for name in names)
    if not files:
        raise ValueError("no picture is named on standard input")
    return files


class PictureReader:
    """Reads pictures for a model, and collects what is wrong with them.

    Attributes:
        errors: file → why it can't be read.
        messages: errors and warnings, to be printed at the end.
    """

    def __init__(self, classifier: Classifier, *, background: int, invert: bool):
        """Choose how pictures are read.

        Args:
            classifier: the model.
            background: grey level behind transparent pixels.
            invert: whether dark and bright are exchanged.
        """
        self._classifier = classifier
        self._background, self._invert = background, invert
        self.errors: dict[str, str] = {}
        self.messages: list[str] = []

    def read(self, file: pathlib.Path) -> np.ndarray | None:
        """Read a picture as the model takes it, uint8; None if it can't be read."""
        channels = self._classifier.task.image_shape[2]
        try:
            image_HWC = decode_picture(
                file, channels=channels, background=self._background
            )
        except ValueError as error:
            self.errors[str(file)] = str(error)
            self.messages.append(f"error: {error}")
            return None
        image_HWC = 255 - image_HWC if self._invert else image_HWC
        self._compare_borders(file, image_HWC)
        return self._classifier.prepare(image_HWC)

    def _compare_borders(self, file: pathlib.Path, image_HWC: np.ndarray) -> None:
        """Warn of a bright border where the model was trained on dark ones."""
        border = self._classifier.task.border
        is_grey = self._classifier.task.image_shape[2] == 1
        if border is None or border > _DARK or not is_grey or self._invert:
            return
        if border_brightness(image_HWC[None]) > _BRIGHT:
            self.messages.append(
                f"warning: {str(file)!r} has a bright border, the training's pictures "
                "have dark ones; --invert exchanges dark and bright"
            )


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
    is_short = len(files) <= 1
    with rich.progress.Progress(
        console=console, transient=True, disable=is_short
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
