"""How fast are photos decoded while a model trains, against torch.utils.data?"""

import itertools
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import ours, peers
from benchmarks.cases import Case, cases
from benchmarks.timing import Timing, take_turns
from train_jax.data import ImageSplit, load_splits
from train_jax.data.loader import Batches, load_batches, threads_of_each
from train_jax.data.streamed import random_resized_crop

_AREA = (0.08, 1.0)
_WORKERS = (1, 2)
# In a turn: more than what lies ready when it begins.
_NUM_BATCHES = 12


def measure(*, small: bool, rounds: int) -> Iterator[Timing]:
    """Time decoding alone, then the training of a ViT on what is decoded."""
    name = "ViT, tiny" if small else "ViT-S/16, 224 px"
    case = cases(small=small)[name]
    workers = _WORKERS[:1] if small else _WORKERS
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        write_photos(root, 40 if small else 1000, channels=case.image_shape[2])
        (train,) = load_splits(
            f"folder:{root}", "train", image_size=case.image_shape[0], room=0
        )
        assert isinstance(train, ImageSplit)
        batch_size = case.batch_size * (1 if small else 8)
        yield from take_turns(
            f"decode, crop and resize to {case.image_shape[0]} px, batch {batch_size}",
            _decoders(root, train, batch_size, workers),
            rounds=rounds,
            images=batch_size,
            units=_NUM_BATCHES,
        )
        yield from take_turns(
            f"training step, {name}, batch {case.batch_size}",
            _trainings(root, train, case, workers),
            rounds=rounds,
            images=case.batch_size,
            units=case.num_steps,
        )


def write_photos(root: pathlib.Path, count: int, *, channels: int) -> None:
    """Write JPEG files of 300 to 640 pixels a side, of two classes."""
    rng = np.random.default_rng(0)
    for number in range(count):
        height, width = map(int, rng.integers(300, 640, 2))
        coarse = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        noise = rng.normal(0, 8, (height, width, 3))
        pixels = np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8)
        image = Image.fromarray(pixels).convert("L" if channels == 1 else "RGB")
        path = root / "train" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=85)


def _decoders(
    root: pathlib.Path, train: ImageSplit, batch_size: int, numbers: Sequence[int]
) -> dict[str, Callable[[], object]]:
    """Make programs that load batches each time they are called."""
    programs: dict[str, Callable[[], object]] = {}

    def take(batches: Iterator[Any]) -> Callable[[], object]:
        return lambda: sum(1 for _ in itertools.islice(batches, _NUM_BATCHES))

    for workers in (0, *numbers):
        batches = Batches(
            train.examples,
            _Indices(len(train), batch_size),
            1_000_000,
            crop_area=_AREA,
            seed=[0],
            num_threads=threads_of_each(workers),
        )
        name = _count(workers) if workers else "threads"
        programs[f"ours, {name}"] = take(load_batches(batches, num_workers=workers))
    for workers in numbers:
        loaded = _load_by_torch(root, train, batch_size, workers)
        programs[f"torch.utils.data, {_count(workers)}"] = take(loaded)
    return programs


def _trainings(
    root: pathlib.Path, train: ImageSplit, case: Case, numbers: Sequence[int]
) -> dict[str, Callable[[], object]]:
    """Make programs that train for the case's number of steps when called."""
    fields = {"augment.crop_area": _AREA, "optimizer.schedule": "constant"}
    case = case._replace(num_classes=2, fields=case.fields | fields)
    in_memory = case._replace(fields=case.fields | {"augment.crop_area": None})
    programs: dict[str, Callable[[], object]] = {
        "ours, in memory": ours.make_program(in_memory, case.num_steps)
    }
    for workers in (0, *numbers):
        name = _count(workers) if workers else "threads"
        streamed = case._replace(fields=case.fields | {"dataset.num_workers": workers})
        programs[f"ours, {name}"] = ours.make_program(
            streamed, case.num_steps, train=train
        )
    for workers in numbers:
        batches = _load_by_torch(root, train, case.batch_size, workers)
        name = f"PyTorch eager, {_count(workers)}"
        programs[name] = peers.make_steps(case, batches=batches)
    return programs


def _count(workers: int) -> str:
    return f"{workers} worker{'s' if workers > 1 else ''}"


class _Indices:
    """The indices of a batch: in order, again and again."""

    def __init__(self, num_examples: int, batch_size: int):
        self._num_examples = num_examples
        self._batch_size = batch_size

    def __call__(self, number: int) -> np.ndarray:
        first = number * self._batch_size
        return (first + np.arange(self._batch_size)) % self._num_examples


class _Photos(torch.utils.data.Dataset):
    """The same photos, cropped and resized by the same functions."""

    def __init__(self, root: pathlib.Path, size: int, channels: int):
        self._files = sorted((root / "train").rglob("*.jpg"))
        self._size = size
        self._mode = "L" if channels == 1 else "RGB"

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        file = self._files[index]
        with Image.open(file) as image:
            image_HWC = np.asarray(image.convert(self._mode))
        image_HWC = image_HWC.reshape(*image_HWC.shape[:2], -1)
        rng = np.random.default_rng(index)
        crop = random_resized_crop(image_HWC, rng, area=_AREA)
        side = (self._size, self._size)
        resized = Image.fromarray(crop if self._mode == "RGB" else crop[..., 0]).resize(
            side, Image.Resampling.BILINEAR
        )
        pixels = torch.from_numpy(np.asarray(resized).reshape(*side, -1).copy())
        return pixels, int(file.parent.name == "b")


def _load_by_torch(
    root: pathlib.Path, train: ImageSplit, batch_size: int, workers: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Load normalised batches with worker processes, again and again."""
    _, side, _, channels = train.image_BHWC.shape
    loader = torch.utils.data.DataLoader(
        _Photos(root, side, channels),
        batch_size,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        persistent_workers=True,
        multiprocessing_context="spawn",
    )
    while True:
        for image, label in loader:
            yield image.permute(0, 3, 1, 2).float() / 127.5 - 1, label
