"""Draw what a trained ViT looks at: python -m train_jax.explain --workdir RUN."""

import argparse
import contextlib
import dataclasses
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
from train_jax.output import plots
from train_jax.output import workdir as wd
from train_jax.run.trained import TrainedRun, load_model
from train_jax.tasks import Classification
from vit_jax.interpret import (
    attention_rollout,
    attention_weights,
    mean_attention_distance,
    patch_relevance,
    position_similarity,
)

_PROGRAM = "python -m train_jax.explain"

# How many test images the heads' distance is averaged over.
_SAMPLE = 128


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
        trained = load_model(workdir, run=options.run, which=options.checkpoint)
        explainer = Explainer(trained)
        images = explainer.choose(options.images, file)
        explainer.check(options.layer, options.head)
        sample_BHWC = explainer.test.image_BHWC[:_SAMPLE] if file is None else None
    except (OSError, ValueError) as error:
        cli.print_error(_PROGRAM, error)
        return 2
    names = [f"explain_{name}.png" for name in images]
    try:
        with _moved_into(out) as folder:
            for name, image_HWC in zip(names, images.values(), strict=True):
                explainer.draw_image(
                    image_HWC, folder / name, layer=options.layer, head=options.head
                )
            if sample_BHWC is not None:
                written = explainer.draw_model(folder, sample_BHWC)
                names += [path.name for path in written]
    except OSError as error:
        reason = f"no pictures can be written to {str(out)!r}: "
        reason += f"{error.strerror or error}; --out names another folder"
        cli.print_error(_PROGRAM, ValueError(reason))
        return 2
    for name in names:
        print(out / name)
    return 0


@contextlib.contextmanager
def _moved_into(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Give an empty folder, whose files go into `folder` at the end; all or none.

    Raises:
        OSError: at once, if nothing can be written there.
    """
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            yield pathlib.Path(scratch)
            for path in pathlib.Path(scratch).iterdir():
                os.replace(path, folder / path.name)
    finally:
        for path in new:
            with contextlib.suppress(OSError):  # not empty: the pictures are there
                path.rmdir()


def _parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=_PROGRAM,
        description="Draw what a trained ViT looks at.",
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
        "--layer", type=int, help="whose heads to draw, from 1 (default: the last)"
    )
    parser.add_argument("--head", type=int, help="only this head, from 1")
    parser.add_argument(
        "--run",
        type=int,
        default=0,
        help="which one, from 0, of several runs in one folder",
    )
    return parser


@dataclasses.dataclass
class Explainer:
    """Draws what a trained ViT makes of images."""

    trained: TrainedRun

    def __post_init__(self) -> None:
        """Raise ValueError for a model that attends to no patches."""
        task, model = self.trained.task, self.trained.model
        self.depth: int = getattr(model, "depth", 0)
        if not isinstance(task, Classification) or not self.depth:
            name = self.trained.config.model.name
            raise ValueError(
                f"config.model.name must be a ViT to be explained, got {name!r}"
            )
        self.task: Classification = task
        self.fields: Any = model
        params = self.trained.variables["params"]
        self.has_class_token = "cls" in params
        height, width, _ = task.image_shape
        patch_size = self.fields.patch_size
        self.grid = (height // patch_size, width // patch_size)
        self._capture = compiler.jit(functools.partial(attention_weights, model))
        self._classify = compiler.jit(functools.partial(model.apply, train=False))

    @functools.cached_property
    def test(self) -> Any:
        """The test split; not needed to explain a file."""
        return self.trained.load_test()

    def choose(
        self, indices: list[int], file: pathlib.Path | None
    ) -> dict[str, np.ndarray]:
        """Take images from the test split, or one from a file, by name.

        Raises:
            ValueError: if there is no such image, or it has another size.
        """
        if file is not None:
            return {f"file_{_short_stem(file)}": self._read(file)}
        last = len(self.test) - 1
        for index in indices:
            if not 0 <= index <= last:
                raise ValueError(f"--images must be in [0, {last}], got {index}")
        return {str(index): self.test.image_BHWC[index] for index in indices}

    def check(self, layer: int | None, head: int | None) -> None:
        """Raise ValueError for a layer or a head that does not exist."""
        for flag, value, most in (
            ("--layer", layer, self.depth),
            ("--head", head, self.fields.num_heads),
        ):
            if value is not None and not 1 <= value <= most:
                raise ValueError(f"{flag} must be in [1, {most}], got {value}")

    def draw_image(
        self,
        image_HWC: np.ndarray,
        path: pathlib.Path,
        *,
        layer: int | None = None,
        head: int | None = None,
    ) -> None:
        """Draw an image, its prediction, the rollout and a layer's heads.

        Args:
            image_HWC: uint8.
            path: the PNG to write.
            layer: from 1; the last one if None.
            head: from 1; all of them if None.
        """
        task, variables = self.task, self.trained.variables
        image_BHWC = jnp.asarray(image_HWC)[None]
        input_BHWC = normalize(image_BHWC, mean=task.mean, std=task.std)
        probability_Y = jax.nn.softmax(self._classify(variables, input_BHWC))[0]
        layers = self._capture(variables, input_BHWC)
        layer = self.depth if layer is None else layer
        heads = range(1, self.fields.num_heads + 1) if head is None else [head]

        maps = {"rollout": attention_rollout(layers)}
        for number in heads:
            title = f"layer {layer}, head {number}"
            maps[title] = layers[layer - 1][:, number - 1]
        relevance = {
            title: np.asarray(
                patch_relevance(map_BTT, has_class_token=self.has_class_token)[0]
            ).reshape(self.grid)
            for title, map_BTT in maps.items()
        }
        plots.plot_explanation(
            image_HWC,
            np.asarray(probability_Y),
            task.class_names,
            relevance,
            path,
            patch_size=self.fields.patch_size,
        )

    def draw_model(self, folder: pathlib.Path, image_BHWC: np.ndarray) -> list:
        """Draw how far the heads look, and how alike the positions are.

        Args:
            folder: the PNGs go there.
            image_BHWC: uint8, the images that the distance is averaged over.

        Returns:
            The files written.
        """
        task, variables = self.task, self.trained.variables
        input_BHWC = normalize(jnp.asarray(image_BHWC), mean=task.mean, std=task.std)
        layers = self._capture(variables, input_BHWC)
        distance_LN = np.stack(
            [
                mean_attention_distance(
                    weights_BNTT, grid=self.grid, has_class_token=self.has_class_token
                )
                for weights_BNTT in layers
            ]
        )
        written = [folder / "attention_distance.png"]
        plots.plot_attention_distance(distance_LN * self.fields.patch_size, written[0])
        if "pos_embedding" in variables["params"]:
            similarity_PP = position_similarity(
                variables["params"]["pos_embedding"],
                has_class_token=self.has_class_token,
            )
            written.append(folder / "position_similarity.png")
            plots.plot_position_similarity(
                np.asarray(similarity_PP), self.grid, written[1]
            )
        return written

    def _read(self, file: pathlib.Path) -> np.ndarray:
        """Read a picture as the model wants its images."""
        height, width, channels = self.task.image_shape
        try:
            image_HWC = decode_picture(file, channels=channels)
        except ValueError as error:
            raise ValueError(f"--file {error}") from error
        if image_HWC.shape != self.task.image_shape:
            got = "x".join(map(str, image_HWC.shape))
            raise ValueError(
                f"--file must be an image of {height}x{width}x{channels}, got {got}"
            )
        return image_HWC


def _short_stem(file: pathlib.Path) -> str:
    """Turn a file's name into a part of another one that any system can write."""
    stem = re.sub(r"[^\w.-]+", "_", file.stem)
    return stem.encode()[: 255 - len("explain_file_.png")].decode(errors="ignore")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
