"""Draw the attention maps of a trained ViT: python -m train_jax.explain."""

import argparse
import contextlib
import functools
import os
import pathlib
import re
import signal
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from train_jax.cli import arguments as cli
from train_jax.data.picture import decode_picture
from train_jax.devices import compiler, processes
from train_jax.devices.folders import local_path
from train_jax.learning.augment import normalize
from train_jax.output import attention_plots
from train_jax.output import workdir as wd
from train_jax.run.trained import TrainedModel, load_model
from train_jax.tasks import Classification
from vit_jax.interpret import (
    attention_rollout,
    attention_weights,
    mean_attention_distance,
    patch_relevance,
    position_similarity,
)
from vit_jax.vit import ViT

_PROGRAM = "python -m train_jax.explain"

# The attention distance is the mean over so many test images.
_MAX_IMAGES = 128


def main(arguments: list[str]) -> int:
    """Parse the command line, draw, and return the exit code."""
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        print(f"{_PROGRAM}: stopped", file=sys.stderr)
        return 128 + signal.SIGINT


def _run(arguments: list[str]) -> int:
    cli.prepare_output()
    options = _parser().parse_args(arguments)
    cli.silence_libraries()
    try:
        processes.check_devices()
        compiler.enable_compilation_cache()
        workdir = local_path(options.workdir, "--workdir")
        out = local_path(options.out, "--out") if options.out else workdir / wd.PLOTS
        file = None if options.file is None else local_path(options.file, "--file")
        run = load_model(workdir, run=options.run, which=options.checkpoint)
        explainer = Explainer(run)
        explainer.check_layer_and_head(options.layer, options.head)
        if file is not None:
            images = {f"file_{_short_stem(file)}": explainer.read_image(file)}
            test_BHWC = None
        else:
            test: Any = run.load_test()  # of images, as the model is a ViT
            test_BHWC = test.image_BHWC
            images = _select_images(test_BHWC, options.images)
    except (OSError, ValueError) as error:
        cli.print_error(_PROGRAM, error)
        return 2
    names = [f"explain_{name}.png" for name in images]
    try:
        with _temporary_folder(out) as folder:
            for name, image_HWC in zip(names, images.values(), strict=True):
                explainer.draw_image(
                    image_HWC, folder / name, layer=options.layer, head=options.head
                )
            if test_BHWC is not None:
                names += explainer.draw_model(folder, test_BHWC[:_MAX_IMAGES])
    except OSError as error:
        reason = f"no pictures can be written to {str(out)!r}: "
        reason += f"{error.strerror or error}; --out names another folder"
        cli.print_error(_PROGRAM, ValueError(reason))
        return 2
    for name in names:
        print(out / name)
    return 0


def _select_images(image_MHWC: np.ndarray, indices: list[int]) -> dict[str, np.ndarray]:
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
def _temporary_folder(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """Make an empty folder; at the end move its files into `out`, all or none.

    Raises:
        OSError: at once, if nothing can be written there.
    """
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


def _parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=_PROGRAM,
        description="Draw the attention maps of a trained ViT.",
        allow_abbrev=False,
    )
    parser.add_argument("--workdir", required=True, help="folder of the run")
    cli.add_checkpoint_flag(parser)
    parser.add_argument("--out", help="folder for the pictures (default: its plots/)")
    parser.add_argument(
        "--images",
        type=int,
        nargs="+",
        default=[0, 1, 2, 3],
        metavar="I",
        help="numbers of test images, from 0 (default: 0 1 2 3)",
    )
    parser.add_argument("--file", help="a picture to explain instead of test images")
    parser.add_argument(
        "--layer", type=int, help="layer to draw, from 1 (default: the last)"
    )
    parser.add_argument("--head", type=int, help="head to draw, from 1 (default: all)")
    parser.add_argument(
        "--run",
        type=int,
        default=0,
        help="which run, from 0, if there are several in the folder (default: 0)",
    )
    return parser


class Explainer:
    """Draws attention maps and position embeddings of a trained ViT."""

    def __init__(self, run: TrainedModel):
        """Compile what is drawn.

        Raises:
            ValueError: if the model is not a ViT.
        """
        task, model = run.task, run.model
        if not isinstance(task, Classification) or not isinstance(model, ViT):
            raise ValueError(
                f"config.model.name must be a ViT to be explained, got {run.name!r}"
            )
        self._task, self._model, self._variables = task, model, run.variables
        self._has_class_token = model.pool == "cls"
        self._tokens: Any = {
            "has_class_token": self._has_class_token,
            "num_registers": model.num_registers,
        }
        height, width, _ = task.image_shape
        self._grid = (height // model.patch_size, width // model.patch_size)
        self._attend = compiler.fast_jit(functools.partial(attention_weights, model))
        self._classify = compiler.fast_jit(functools.partial(model.apply, train=False))

    def check_layer_and_head(self, layer: int | None, head: int | None) -> None:
        """Raise ValueError for a layer or a head that does not exist."""
        for flag, value, most in (
            ("--layer", layer, self._model.depth),
            ("--head", head, self._model.num_heads),
        ):
            if value is not None and not 1 <= value <= most:
                raise ValueError(f"{flag} must be in [1, {most}], got {value}")

    def read_image(self, file: pathlib.Path) -> np.ndarray:
        """Read an image file of the size and channels of the model's input.

        Returns:
            image_HWC, uint8.

        Raises:
            ValueError: if it cannot be read, or has another size.
        """
        height, width, channels = self._task.image_shape
        try:
            image_HWC = decode_picture(file, channels=channels)
        except ValueError as error:
            raise ValueError(f"--file {error}") from error
        if image_HWC.shape != self._task.image_shape:
            got = "x".join(map(str, image_HWC.shape))
            raise ValueError(
                f"--file must be an image of {height}x{width}x{channels}, got {got}"
            )
        return image_HWC

    def draw_image(
        self,
        image_HWC: np.ndarray,
        path: pathlib.Path,
        *,
        layer: int | None = None,
        head: int | None = None,
    ) -> None:
        """Draw an image, its prediction, the attention rollout and a layer's heads.

        Args:
            image_HWC: uint8.
            path: the PNG to write.
            layer: from 1; the last one if None.
            head: from 1; all of them if None.
        """
        input_BHWC = self._normalize(image_HWC[None])
        probability_Y = jax.nn.softmax(self._classify(self._variables, input_BHWC))[0]
        layers = self._attend(self._variables, input_BHWC)
        layer = self._model.depth if layer is None else layer
        heads = range(1, self._model.num_heads + 1) if head is None else [head]

        maps = {"rollout": attention_rollout(layers)}
        for number in heads:
            title = f"layer {layer}, head {number}"
            maps[title] = layers[layer - 1][:, number - 1]
        relevance = {
            title: np.asarray(patch_relevance(map_BTT, **self._tokens)[0]).reshape(
                self._grid
            )
            for title, map_BTT in maps.items()
        }
        attention_plots.plot_explanation(
            image_HWC,
            np.asarray(probability_Y),
            self._task.class_names,
            relevance,
            path,
            patch_size=self._model.patch_size,
        )

    def draw_model(self, folder: pathlib.Path, image_BHWC: np.ndarray) -> list[str]:
        """Draw the heads' attention distances and the position embeddings' similarity.

        Args:
            folder: the PNGs go there.
            image_BHWC: uint8, the images that the distance is averaged over.

        Returns:
            The names of the files written.
        """
        layers = self._attend(self._variables, self._normalize(image_BHWC))
        distance_LN = self._model.patch_size * np.stack(
            [
                mean_attention_distance(weights_BNTT, grid=self._grid, **self._tokens)
                for weights_BNTT in layers
            ]
        )
        names = ["attention_distance.png"]
        attention_plots.plot_attention_distance(distance_LN, folder / names[0])
        if self._model.position_embedding == "learned":
            position_1TD = self._variables["params"]["pos_embedding"]
            similarity_TT = position_similarity(
                position_1TD, has_class_token=self._has_class_token
            )
            names.append("position_similarity.png")
            attention_plots.plot_position_similarity(
                np.asarray(similarity_TT), self._grid, folder / names[1]
            )
        return names

    def _normalize(self, image_BHWC: np.ndarray) -> jax.Array:
        mean, std = self._task.mean, self._task.std
        return normalize(jnp.asarray(image_BHWC), mean=mean, std=std)


def _short_stem(file: pathlib.Path) -> str:
    """Turn a file's name into a part of another one that any file system can hold."""
    stem = re.sub(r"[^\w.-]+", "_", file.stem)
    return stem.encode()[: 255 - len("explain_file_.png")].decode(errors="ignore")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
