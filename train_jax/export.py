"""Export a trained model for other programs: python -m train_jax.export."""

import argparse
import dataclasses
import functools
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import resnet_jax.weights
import vit_jax.weights
from resnet_jax.resnet import ResNet
from train_jax.cli import command
from train_jax.inference import flags, model_card, program
from train_jax.output import workdir as wd
from train_jax.output.files import open_folder, read_json, replace_file
from train_jax.run.trained_model import TrainedModel
from train_jax.storage import store
from train_jax.storage.paths import local_path
from train_jax.storage.store import Path, any_path
from vit_jax.vit import ViT
from weight_files import Pretrained

_PROGRAM = "python -m train_jax.export"


def main(arguments: list[str]) -> int:
    """Parse the command line, export, and return the exit code."""
    return command.run(_make_parser(), _run, arguments)


def _run(options: argparse.Namespace) -> int:
    path = _out_path(options)
    if options.format == "hf":
        _check_folder(path)
    trained = flags.load_named_model(options)
    start = time.perf_counter()
    with open_folder(path.parent) as folder:
        _, write = _FORMATS[options.format]
        files = write(trained, folder / path.name)
        if options.format == "hf":
            files.append(_write_card(trained, options, folder / path.name))
        size = sum(file.stat().st_size for file in files)
    seconds = time.perf_counter() - start
    result = {
        "format": options.format,
        "path": str(path),
        "files": [str(path.parent / file.relative_to(folder)) for file in files],
        "bytes": size,
        "seconds": round(seconds, 2),
    }
    if options.json:
        print(json.dumps(result, ensure_ascii=False))
    else:
        print(f"{path}  {result['bytes'] / 2**20:.1f} MiB, {seconds:.1f} s")
    return 0


def _make_parser() -> argparse.ArgumentParser:
    parser = flags.make_model_parser(
        _PROGRAM,
        "Write a trained model for other programs: stablehlo, the whole computation "
        "from uint8 pixels to probabilities, for any batch size, on CPU, CUDA and TPU; "
        "savedmodel, the same for TensorFlow on CPU and CUDA; safetensors, the weights "
        "for timm (a ResNet's for torchvision as well); hf, a folder for transformers; "
        "npz, for the ViT authors' code.",
    )
    parser.add_argument("--format", required=True, choices=tuple(_FORMATS))
    parser.add_argument(
        "--out", help="file or folder to write (default: in the workdir's export/)"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object about the result",
    )
    return parser


def _out_path(options: argparse.Namespace) -> Path:
    """Choose where to write."""
    if options.out is not None:
        return local_path(options.out, "--out")
    if options.workdir is None:
        raise ValueError("--out is required with --weights")
    folder = any_path(options.workdir, "--workdir") / wd.EXPORT
    return folder / _FORMATS[options.format][0]


def _check_folder(path: Path) -> None:
    """Raise ValueError for a folder with other files than those of an export."""
    with store.errors(path):
        names = [file.name for file in path.iterdir()] if path.is_dir() else []
    if names and not any(name.startswith("model.safetensors") for name in names):
        raise ValueError(
            f"{str(path)!r} must be a folder that is new, empty or of an earlier "
            "export; --out names another one"
        )


def _write_stablehlo(trained: TrainedModel, path: pathlib.Path) -> list[pathlib.Path]:
    replace_file(path, program.export_stablehlo(trained))
    return [path]


def _write_weights(
    trained: TrainedModel, path: pathlib.Path, *, format: str
) -> list[pathlib.Path]:
    """Write the weights in the layout of another library.

    Raises:
        ValueError: if it has no such layout for the model.
    """
    if not isinstance(trained.model, ViT | ResNet):
        raise ValueError(
            f"weights are written of a ViT or a ResNet, not of {trained.name!r}; "
            "--format stablehlo takes any model"
        )
    if format == "npz" and not isinstance(trained.model, ViT):
        raise ValueError(f"--format npz takes a ViT, not {trained.name!r}")
    pretrained = trained.to_pretrained()
    if len(pretrained.mean or ()) > pretrained.image_shape[2]:
        raise ValueError(
            "other libraries know a mean of each channel alone, and the model was "
            "trained with config.dataset.mean 'pixel'; --format stablehlo takes any "
            "model"
        )
    for warning in _not_written(trained, pretrained, format):
        print(f"warning: {warning}", file=sys.stderr)
    library = vit_jax if isinstance(trained.model, ViT) else resnet_jax
    if format == "hf" and pretrained.image_shape[2] == 1:
        pretrained = _for_colours(pretrained, library.weights.fit)
    return library.weights.save(path, pretrained, format=format)


def _not_written(
    trained: TrainedModel, pretrained: Pretrained, format: str
) -> Iterator[str]:
    """Say what of the preparation of images a format cannot hold."""
    height, width, _ = pretrained.image_shape
    if format == "npz":
        if (trained.resize, trained.crop_fraction) != ("stretch", 1.0):
            yield (
                "a .npz file does not say how images are resized; its readers stretch "
                f"them, the training had config.dataset.resize {trained.resize!r}"
            )
        if {*(pretrained.mean or ()), *(pretrained.std or ())} != {0.5}:
            yield (
                "a .npz file holds no mean and standard deviation; its readers use 0.5 "
                f"and 0.5, the training had {pretrained.mean} and {pretrained.std}"
            )
    elif trained.resize == "pad":
        yield (
            "other libraries will resize pictures and cut their centre out; the "
            "training had config.dataset.resize 'pad'"
        )
    elif format == "hf" and trained.resize == "crop" and height != width:
        yield (
            "transformers will not fill an oblong input, but cut the centre out and "
            "add black bands, where pictures have other proportions"
        )


def _for_colours(pretrained: Pretrained, fit: Callable[..., Any]) -> Pretrained:
    """Make a model of grey images take colours: transformers turns all into colours.

    Of a grey picture it gives the same.
    """
    height, width, _ = pretrained.image_shape
    image_shape = (height, width, 3)
    return dataclasses.replace(
        pretrained,
        variables=fit(pretrained, pretrained.model, image_shape),
        image_shape=image_shape,
        mean=3 * (pretrained.mean or ()) or None,
        std=3 * (pretrained.std or ()) or None,
    )


# Format → name of the file or folder, and what writes it.
_FORMATS: dict[str, tuple[str, Callable[..., list[pathlib.Path]]]] = {
    "stablehlo": ("model.stablehlo", _write_stablehlo),
    "safetensors": (
        "model.safetensors",
        functools.partial(_write_weights, format="timm"),
    ),
    "npz": ("model.npz", functools.partial(_write_weights, format="npz")),
    "hf": ("hf", functools.partial(_write_weights, format="hf")),
    "savedmodel": ("savedmodel", program.export_savedmodel),
}


def _write_card(
    trained: TrainedModel, options: argparse.Namespace, folder: pathlib.Path
) -> pathlib.Path:
    """Write the model card, with the results of the run, if there are any."""
    summary: dict[str, Any] = {}
    if options.workdir is not None:
        file = any_path(options.workdir, "--workdir") / wd.SUMMARY
        if file.is_file():
            summary = read_json(file)
    # The summary is of the last or the best checkpoint, and of all runs in the folder.
    is_its = summary.get("test_step") == trained.step and "runs" not in summary
    card = folder / "README.md"
    text = model_card.make_card(trained, summary if is_its else {})
    replace_file(card, text)
    return card


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
