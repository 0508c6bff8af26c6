"""The flags of the commands that use a trained model, and the model they name."""

import argparse

from train_jax.cli import arguments as cli
from train_jax.output import workdir as wd
from train_jax.run.trained_model import TrainedModel, load_model, load_weights
from train_jax.storage.paths import local_path
from train_jax.storage.store import any_path


def make_model_parser(program: str, description: str) -> argparse.ArgumentParser:
    """Make a parser for a command that takes --workdir or --weights."""
    parser = argparse.ArgumentParser(
        prog=program, description=description, allow_abbrev=False
    )
    group = parser.add_argument_group("the model")
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--workdir",
        metavar="FOLDER",
        help="folder of a run, also gs://BUCKET/FOLDER",
    )
    source.add_argument(
        "--weights",
        metavar="SOURCE",
        help="weights of timm, Hugging Face, torchvision or the ViT's authors: a file, "
        "a folder or hf://owner/name[@revision]",
    )
    cli.add_checkpoint_flag(group)
    group.add_argument(
        "--run",
        type=int,
        default=0,
        help="which run, from 0, if there are several in the folder (default: 0)",
    )
    for flag, meaning in (("--mean", "mean"), ("--std", "standard deviation")):
        group.add_argument(
            flag,
            type=_numbers,
            metavar="A,B,C",
            help=f"{meaning} of each channel, of pixels in [0, 1], where the weights "
            "don't say it",
        )
    group.add_argument(
        "--num_heads", type=int, help="attention heads, where the weights don't say it"
    )
    group.add_argument(
        "--image_size",
        type=_size,
        metavar="HxW",
        help="size of the model's input, where the weights don't say it",
    )
    group.add_argument(
        "--class_names",
        type=lambda text: tuple(text.split(",")),
        metavar="A,B,C",
        help="names of the classes, where the weights don't say them",
    )
    return parser


def load_named_model(options: argparse.Namespace) -> TrainedModel:
    """Load the model that the flags name.

    Raises:
        ValueError: in one line, if that can't be done.
    """
    fields = {
        name: value
        for name in ("mean", "std", "num_heads", "image_size", "class_names")
        if (value := getattr(options, name)) is not None
    }
    if options.workdir is not None:
        if fields:
            raise ValueError(f"--{next(iter(fields))} is for --weights alone")
        workdir = any_path(options.workdir, "--workdir")
        return load_model(workdir, run=options.run, checkpoint=options.checkpoint)
    for name, default in (("run", 0), ("checkpoint", "last")):
        if getattr(options, name) != default:
            raise ValueError(f"--{name} is for --workdir alone")
    source = options.weights
    if not source.startswith("hf://"):
        path = local_path(source, "--weights")
        if (path / wd.CHECKPOINTS).is_dir():
            raise ValueError(f"--weights {source!r} is a run's folder: use --workdir")
        source = str(path)
    return load_weights(source, **fields)


def _numbers(text: str) -> tuple[float, ...]:
    """Parse "0.1,0.2"."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        message = f"must be numbers as in 0.5,0.5,0.5, got {text!r}"
        raise argparse.ArgumentTypeError(message) from None


def _size(text: str) -> tuple[int, int]:
    """Parse "224x224"."""
    sides = text.split("x")
    if len(sides) != 2 or not all(x.isdecimal() and int(x) for x in sides):
        message = f"must be height and width as in 224x224, got {text!r}"
        raise argparse.ArgumentTypeError(message)
    return int(sides[0]), int(sides[1])
