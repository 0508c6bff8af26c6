"""How long do whole commands on MNIST take: first step, first epoch, 97.7 %?"""

import pathlib
import tempfile
from collections.abc import Iterator

import numpy as np

from benchmarks import commands
from benchmarks.timing import Timing
from train_jax.data import Split, load

_TARGET = 0.977
_NUM_EPOCHS = 3  # of configs/vit_mnist.py; the target is reached earlier
_SMALL = ("--config.dataset.name=digits", "--config.model.patch_size=2")


def measure(*, small: bool, rounds: int) -> Iterator[Timing]:
    """Time commands of both sides; those that take a minute or more less often."""
    few = 1 if small else min(rounds, 3)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        data = folder / "data.npz"
        num_images = _write_data(data, "digits" if small else "mnist")
        torch = ("-m", "benchmarks.torch_mnist", "--data", str(data))
        reference = ("--config", "configs/vit_mnist_reference.py", "--workdir", "{run}")
        reference = (*reference, *(_SMALL if small else ()))

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
            images=128,
        )
        programs = {
            program: (command, folder / program.replace(" ", "_"))
            for program, command in first_steps.items()
        }
        commands.take_turns("to fill the caches", programs, rounds=1, images=128)
        yield from commands.take_turns(
            "first step, started again",
            programs,
            rounds=1 if small else rounds,
            images=128,
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
        if small:
            return
        recipe = ("--config", "configs/vit_mnist.py", "--workdir", "{run}")
        until = ("--num_epochs", "20", "--accuracy", str(_TARGET))
        for program, command, turns in (
            ("ours", (*_CHECKED, *recipe, f"--config.num_epochs={_NUM_EPOCHS}"), few),
            ("PyTorch, reference recipe", (*torch, *until), 1),
        ):
            yield from commands.take_turns(
                f"{_TARGET:.1%} of the test split, empty caches",
                {program: (command, None)},
                rounds=turns,
                images=num_images,
            )


# Runs train.py, and fails if it falls short of the accuracy.
_CHECKED = ("-m", "benchmarks.reach", str(_TARGET))


def _write_data(path: pathlib.Path, name: str) -> int:
    """Write a set as PyTorch's side reads it; returns the number of its images."""
    arrays = {}
    for base in ("train", "test"):
        split = load(name, base)
        assert isinstance(split, Split)
        arrays[f"{base}_image"] = split.image_BHWC[..., 0]
        arrays[f"{base}_label"] = split.label_B
    np.savez(path, **arrays)
    return len(arrays["train_label"])
