"""The pictures that a command line names, and how they are read for a model."""

import argparse
import io
import pathlib
import sys

import numpy as np

from train_jax.data.picture import decode_picture
from train_jax.data.pictures import find_pictures
from train_jax.inference.borders import has_opposite_border
from train_jax.inference.classifier import fit_image
from train_jax.run.trained_model import TrainedModel, require_images
from train_jax.storage.paths import local_path


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
        help="grey level behind transparent pixels, 0 to 255 (default: 255, white)",
    )
    parser.add_argument(
        "--invert", action="store_true", help="exchange dark and bright"
    )


def list_files(inputs: list[str]) -> list[pathlib.Path]:
    """List the files that the arguments name.

    Raises:
        ValueError: if a folder holds no picture, or nothing is named at all.
    """
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # names may be any bytes
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
    """

    def __init__(self, trained: TrainedModel, *, background: int, invert: bool):
        """Choose how pictures are read.

        Args:
            trained: the model.
            background: grey level behind transparent pixels.
            invert: whether dark and bright are exchanged.

        Raises:
            ValueError: for a background that is no grey level, or a model of no images.
        """
        if not 0 <= background <= 255:
            raise ValueError(f"--background must be in [0, 255], got {background}")
        self._trained, self._task = trained, require_images(trained)
        self._background, self._invert = background, invert
        self.errors: dict[str, str] = {}
        self._bright: list[str] = []
        self._num_read = 0

    @property
    def messages(self) -> list[str]:
        """Errors and warnings, to be printed at the end."""
        messages = [f"error: {error}" for error in self.errors.values()]
        if self._bright:
            messages.append(
                f"warning: {len(self._bright)} of {self._num_read} pictures, such as "
                f"{self._bright[0]!r}, have a bright border, the training's pictures "
                "have dark ones; --invert exchanges dark and bright"
            )
        return messages

    def read(self, file: pathlib.Path) -> np.ndarray | None:
        """Read a picture as the model takes it, uint8; None if it can't be read."""
        channels = self._task.image_shape[2]
        try:
            image_HWC = decode_picture(
                file, channels=channels, background=self._background
            )
        except ValueError as error:
            self.errors[str(file)] = str(error)
            return None
        image_HWC = 255 - image_HWC if self._invert else image_HWC
        image_HWC = fit_image(self._trained, image_HWC)
        self._num_read += 1
        if not self._invert and has_opposite_border(self._task, image_HWC):
            self._bright.append(str(file))
        return image_HWC
