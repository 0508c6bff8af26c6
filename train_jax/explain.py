"""Draw what a trained model looks at: python -m train_jax.explain."""

import argparse
import contextlib
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from train_jax.cli import command, console
from train_jax.inference import flags
from train_jax.inference.explainers import make_explainer
from train_jax.inference.pictures import PictureReader, add_input_flags, list_files
from train_jax.output import workdir as wd
from train_jax.output.files import open_folder
from train_jax.storage.paths import local_path
from train_jax.storage.store import Path, any_path

_PROGRAM = "python -m train_jax.explain"

# The attention distance is the mean over so many test images.
_MAX_IMAGES = 128


def main(arguments: list[str]) -> int:
    """Parse the command line, draw, and return the exit code."""
    return command.run(_make_parser(), _run, arguments)


def _run(options: argparse.Namespace) -> int:
    out = _out_folder(options)
    trained = flags.load_named_model(options)
    explainer = make_explainer(trained, layer=options.layer, head=options.head)
    reader = PictureReader(
        trained, background=options.background, invert=options.invert
    )
    test_BHWC = None
    if options.invert and not options.inputs:
        raise ValueError("--invert is for pictures that are named")
    if options.images and options.inputs:
        raise ValueError("--images is for test images, not for pictures that are named")
    if options.inputs:
        images = _read(reader, list_files(options.inputs))
    else:
        test: Any = trained.load_test()  # of images, as the model takes them
        test_BHWC = test.image_BHWC
        first = range(min(4, len(test_BHWC)))
        images = _select_images(test_BHWC, options.images or first)
    names = [f"explain_{name}.png" for name in images]
    try:
        with _temporary_folder(out) as folder:
            for name, image_HWC in zip(names, images.values(), strict=True):
                explainer.draw_image(image_HWC, folder / name)
            if test_BHWC is not None:
                names += explainer.draw_model(folder, test_BHWC[:_MAX_IMAGES])
    except OSError as error:
        raise ValueError(
            f"no pictures can be written to {str(out)!r}: {error.strerror or error}; "
            "--out names another folder"
        ) from error
    for name in names:
        print(out / name)
    for message in reader.messages:
        print(f"{_PROGRAM}: {message}", file=sys.stderr)
    return console.FAILED if reader.errors else 0


def _out_folder(options: argparse.Namespace) -> Path:
    """Choose the folder for the pictures."""
    if options.out is not None:
        return local_path(options.out, "--out")
    if options.workdir is not None:
        plots = any_path(options.workdir, "--workdir") / wd.PLOTS
        return plots / f"run_{options.run}" if options.run else plots
    raise ValueError("--out is required with --weights")


def _read(reader: PictureReader, files: list[pathlib.Path]) -> dict[str, np.ndarray]:
    """Read pictures, and name them."""
    images: dict[str, np.ndarray] = {}
    for file in files:
        image_HWC = reader.read(file)
        if image_HWC is None:
            continue
        name, number = _short_name("file", file), 2
        while name in images:
            name, number = _short_name(f"file_{number}", file), number + 1
        images[name] = image_HWC
    return images


def _select_images(
    image_MHWC: np.ndarray, indices: Iterable[int]
) -> dict[str, np.ndarray]:
    """Map the index of each chosen image to it.

    Raises:
        ValueError: if there is no such image.
    """
    last = len(image_MHWC) - 1
    for index in indices:
        if not 0 <= index <= last:
            raise ValueError(f"--images must be in [0, {last}], got {index}")
    return {str(index): image_MHWC[index] for index in indices}


@contextlib.contextmanager
def _temporary_folder(out: Path) -> Iterator[pathlib.Path]:
    """Make an empty folder; at the end move its files into `out`, all or none.

    Raises:
        OSError: at once, if nothing can be written there.
    """
    if not isinstance(out, pathlib.Path):
        with open_folder(out) as folder:
            yield folder
        return
    new = [path for path in (out, *out.parents) if not path.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out) as folder:
            yield pathlib.Path(folder)
            for path in pathlib.Path(folder).iterdir():
                os.replace(path, out / path.name)
    finally:
        for path in new:
            with contextlib.suppress(OSError):  # not empty: the pictures are there
                path.rmdir()


def _make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = flags.make_model_parser(
        _PROGRAM,
        "Draw what a trained model looks at: the attention of a ViT, Grad-CAM of a "
        "ResNet.",
    )
    add_input_flags(parser, nargs="*")
    parser.add_argument(
        "--out",
        help="folder for the pictures (default: its plots/, with --run N plots/run_N/)",
    )
    parser.add_argument(
        "--images",
        type=int,
        nargs="+",
        metavar="I",
        help="numbers of test images, from 0, if no pictures are named (default: the "
        "first four)",
    )
    parser.add_argument(
        "--layer", type=int, help="layer of a ViT to draw, from 1 (default: the last)"
    )
    parser.add_argument(
        "--head", type=int, help="head of a ViT to draw, from 1 (default: all)"
    )
    return parser


def _short_name(prefix: str, file: pathlib.Path) -> str:
    """Turn a file's name into a part of another one that any file system can hold."""
    stem = re.sub(r"[^\w.-]+", "_", file.stem).encode()
    room = 255 - len(f"explain_{prefix}_.png")
    return f"{prefix}_{stem[:room].decode(errors='ignore')}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
