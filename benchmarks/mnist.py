"""How long do whole commands on MNIST take: first step, first epoch, 97.7 %?"""

import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from benchmarks import commands
from benchmarks.timing import Timing
from train_jax.data import ImageSplit, load

_TARGET = 0.977
_NUM_EPOCHS = 3  # of configs/vit_mnist.py; the target is reached earlier
_BATCH_SIZE = 128  # of both sides
# Two steps of a tiny model.
_SMALL_SPLIT = "train[:256]"
_SMALL = (
    *("--config.dataset.name=digits", f"--config.dataset.train_split={_SMALL_SPLIT}"),
    *("--config.model.patch_size=2", "--config.model.width=16"),
    "--config.model.depth=1",
)


def measure(*, small: bool, rounds: int) -> Iterator[Timing]:
    """Time commands of both sides; those that take a minute or more less often."""
    few = 1 if small else min(rounds, 3)
    reference = ("--config", "configs/vit_mnist_reference.py", "--workdir", "{run}")
    reference = (*reference, *(_SMALL if small else ()))
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        num_images = _write_data(folder / "data.npz", small=small)
        torch = ("-m", "benchmarks.torch_mnist", "--data", str(folder / "data.npz"))
        first_steps = {
            "ours": ("-m", "benchmarks.first_step", *reference),
            "PyTorch eager": (*torch, "--first_step"),
        }
        if not small:
            first_steps["PyTorch compiled"] = (*torch, "--first_step", "--compile")
        yield from commands.take_turns(
            "first step, empty caches",
            {program: (command, None) for program, command in first_steps.items()},
            rounds=few,
            images=_BATCH_SIZE,
        )
        if small:
            return
        yield from _first_step_again(first_steps, folder, rounds=rounds)
        yield from commands.take_turns(
            "first epoch, empty caches",
            {
                "ours": (("train.py", *reference, "--config.num_epochs=1"), None),
                "PyTorch, 2 DataLoader workers": (torch, None),
            },
            rounds=few,
            images=num_images,
        )
        yield from _time_to_target(torch, rounds=few, images=num_images)


def _first_step_again(
    commands_of: Mapping[str, Sequence[str]], folder: pathlib.Path, *, rounds: int
) -> Iterator[Timing]:
    """Time from the command to the end of the first step, with filled caches."""
    programs = {
        program: (command, folder / program.replace(" ", "_"))
        for program, command in commands_of.items()
    }
    commands.take_turns("to fill the caches", programs, rounds=1, images=_BATCH_SIZE)
    yield from commands.take_turns(
        "first step, started again", programs, rounds=rounds, images=_BATCH_SIZE
    )


def _time_to_target(
    torch: Sequence[str], *, rounds: int, images: int
) -> Iterator[Timing]:
    """Time until the accuracy is reached: PyTorch with its recipe, and only once."""
    ours = ("-m", "benchmarks.reach", str(_TARGET), "--config", "configs/vit_mnist.py")
    ours = (*ours, "--workdir", "{run}", f"--config.num_epochs={_NUM_EPOCHS}")
    torch = (*torch, "--num_epochs", "20", "--accuracy", str(_TARGET))
    for program, command, turns in (
        ("ours", ours, rounds),
        ("PyTorch, reference recipe", torch, 1),
    ):
        yield from commands.take_turns(
            f"{_TARGET:.1%} of the test split, empty caches",
            {program: (command, None)},
            rounds=turns,
            images=images,
        )


def _write_data(path: pathlib.Path, *, small: bool) -> int:
    """Write a set as PyTorch's side reads it; returns the number of its images."""
    name, train = ("digits", _SMALL_SPLIT) if small else ("mnist", "train")
    arrays = {}
    for base, split in (("train", train), ("test", "test")):
        images = load(name, split)
        assert isinstance(images, ImageSplit)
        arrays[f"{base}_image"] = images.image_BHWC[..., 0]
        arrays[f"{base}_label"] = images.label_B
    np.savez(path, **arrays)
    return len(arrays["train_label"])
