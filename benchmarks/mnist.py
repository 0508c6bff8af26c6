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
_SMALL = ("--config.dataset.name=digits", "--config.model.patch_size=2")


def measure(*, small: bool, rounds: int) -> Iterator[Timing]:
    """Time commands of both sides; those that take a minute or more less often."""
    few = 1 if small else min(rounds, 3)
    reference = ("--config", "configs/vit_mnist_reference.py", "--workdir", "{run}")
    reference = (*reference, *(_SMALL if small else ()))
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        data = folder / "data.npz"
        num_images = _write_data(data, "digits" if small else "mnist")
        torch = ("-m", "benchmarks.torch_mnist", "--data", str(data))
        first_steps = {
            "ours": ("-m", "benchmarks.first_step", *reference),
            "PyTorch eager": (*torch, "--first_step"),
        }
        if not small:
            first_steps["PyTorch compiled"] = (*torch, "--first_step", "--compile")
        yield from _first_step(
            first_steps, folder, first_rounds=few, rounds=1 if small else rounds
        )
        yield from commands.take_turns(
            "first epoch, empty caches",
            {
                "ours": (("train.py", *reference, "--config.num_epochs=1"), None),
                "PyTorch, 2 DataLoader workers": (torch, None),
            },
            rounds=few,
            images=num_images,
        )
        if not small:
            yield from _time_to_target(torch, rounds=few, images=num_images)


def _first_step(
    programs: Mapping[str, Sequence[str]],
    folder: pathlib.Path,
    *,
    first_rounds: int,
    rounds: int,
) -> Iterator[Timing]:
    """From the command to the end of the first step, the first time and again."""
    cold = {program: (command, None) for program, command in programs.items()}
    warm = {
        program: (command, folder / program.replace(" ", "_"))
        for program, command in programs.items()
    }
    yield from commands.take_turns(
        "first step, empty caches", cold, rounds=first_rounds, images=128
    )
    commands.take_turns("to fill the caches", warm, rounds=1, images=128)
    yield from commands.take_turns(
        "first step, started again", warm, rounds=rounds, images=128
    )


def _time_to_target(
    torch: Sequence[str], *, rounds: int, images: int
) -> Iterator[Timing]:
    """Until the accuracy is reached: ours by its own recipe; the other side once."""
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


def _write_data(path: pathlib.Path, name: str) -> int:
    """Write a set as PyTorch's side reads it; returns the number of its images."""
    arrays = {}
    for base in ("train", "test"):
        split = load(name, base)
        assert isinstance(split, ImageSplit)
        arrays[f"{base}_image"] = split.image_BHWC[..., 0]
        arrays[f"{base}_label"] = split.label_B
    np.savez(path, **arrays)
    return len(arrays["train_label"])
