"""Load a folder of pictures: a folder for each class, in splits or all together."""

import concurrent.futures
import dataclasses
import functools
import itertools
import math
import os
import pathlib
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from train_jax.data import cache
from train_jax.data.picture import decode_picture
from train_jax.data.pictures import find_pictures
from train_jax.data.resize import Resize, resize_image
from train_jax.data.split import ImageSplit, check_split_name
from train_jax.data.streamed import stream_split

PREFIX = "folder:"
_SPLITS = ("train", "val", "test")
# Share of the pictures that is the training split, if the folder has no splits.
_TRAIN_SHARE = 0.9
# Modes of Pillow without colours.
_GREY = {"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "F"}

Examples = list[tuple[pathlib.Path, int]]


def load_folder(
    root: pathlib.Path,
    *bases: str,
    image_size: int | None = None,
    resize: Resize = "crop",
    split_seed: int = 0,
    room: float = math.inf,
) -> list[ImageSplit]:
    """Load splits of a folder of pictures.

    The folder holds `train/CLASS/…` and, if there are any, `val/CLASS/…` and
    `test/CLASS/…`; or the classes alone, of whose pictures nine tenths are the split
    "train" and the others "test". The pictures are in an order drawn from the seed in
    which the classes are mixed evenly, so that any slice has its share of each.

    Args:
        root: the folder.
        *bases: names of the splits.
        image_size: side to which pictures are brought, pixels; without it all must be
            of one size.
        resize: how they are brought to it, see `resize_image`.
        split_seed: of the order.
        room: see `load_splits`.

    Returns:
        The splits; their images are grey if all pictures of the training split are.

    Raises:
        ValueError: in one line, for a folder that is laid out otherwise, a class
            without pictures, pictures that can't be read, or of different sizes.
    """
    examples, class_names = _list_examples(root, split_seed)
    for base in bases:
        check_split_name(base, examples, f"{PREFIX}{root}")
    count_channels = functools.cache(lambda: _count_channels(examples["train"]))
    if room < math.inf:
        channels = count_channels()
        streamed = [
            _stream(root, examples[base], class_names, channels, image_size, resize)
            for base in bases
        ]
        if sum(math.prod(split.image_BHWC.shape) for split in streamed) > room:
            return streamed
    stats = [_stat(file, root) for file, _ in itertools.chain(*examples.values())]
    how: Any = {"image_size": image_size, "resize": resize}
    splits = []
    for base in bases:
        facts = [str(root.resolve()), base, *how.values(), split_seed, stats]
        path = cache.path_of(f"{root.name}-{base}", facts)
        split = cache.read_cache(path)
        if split is None:
            files, labels = zip(*examples[base], strict=True)
            images = _read(files, root, channels=count_channels(), **how)
            split = ImageSplit(_stack(images), np.array(labels, np.int32), class_names)
            cache.write_cache(path, split)
        splits.append(_with_checksum(split, root, examples[base]))
    firsts = [examples[base][0][0] for base in bases]
    _check_sizes([split.image_BHWC[0] for split in splits], firsts)
    return splits


def _with_checksum(
    split: ImageSplit, root: pathlib.Path, examples: Examples
) -> ImageSplit:
    """Note which pictures a split has, and in which order."""
    names = b"\n".join(os.fsencode(file.relative_to(root)) for file, _ in examples)
    return dataclasses.replace(split, files_checksum=zlib.crc32(names))


def _stack(images: list[np.ndarray]) -> np.ndarray:
    """Stack images, which are let go one by one: memory holds them once."""
    stacked = np.empty((len(images), *images[0].shape), np.uint8)
    while images:
        image = images.pop()
        stacked[len(images)] = image
    return stacked


class PictureFiles:
    """The files of a split, see `Source`."""

    def __init__(self, root: pathlib.Path, examples: Examples, channels: int):
        self._root = str(root)
        self._names = [os.path.relpath(file, root) for file, _ in examples]
        self._label_M = np.array([label for _, label in examples], np.int32)
        self._channels = channels

    def read_image(self, place: int) -> np.ndarray:
        """Read and decode a picture."""
        file = os.path.join(self._root, self._names[place])
        return decode_picture(file, channels=self._channels)

    def read_label(self, place: int) -> int:
        """Look up the label of a picture."""
        return int(self._label_M[place])


def _stream(
    root: pathlib.Path,
    examples: Examples,
    class_names: tuple[str, ...],
    channels: int,
    image_size: int | None,
    resize: Resize,
) -> ImageSplit:
    """Make a split whose pictures are decoded when they are asked for."""
    files = PictureFiles(root, examples, channels)
    split = stream_split(
        files,
        len(examples),
        channels=channels,
        image_size=image_size,
        class_names=class_names,
        resize=resize,
    )
    return _with_checksum(split, root, examples)


def _count_channels(examples: Examples) -> int:
    """Count the channels: 1 if all pictures are grey."""
    return 1 if all(_is_grey(file) for file, _ in examples) else 3


def _list_examples(
    root: pathlib.Path, seed: int
) -> tuple[dict[str, Examples], tuple[str, ...]]:
    """List the pictures of each split with their labels, and the classes' names."""
    if not root.is_dir():
        raise ValueError(f"dataset {PREFIX}{str(root)!r} is not a folder")
    folders = {name: root / name for name in _SPLITS if (root / name).is_dir()}
    if folders and "train" not in folders:
        raise ValueError(
            f"dataset {str(root)!r} has a folder {next(iter(folders))!r}, but none "
            "called 'train'"
        )
    is_split = len(folders) > 1
    if not is_split:
        folders = {"train": folders.get("train", root)}
    classes = {name: _list_classes(folder) for name, folder in folders.items()}
    class_names = tuple(classes["train"])
    for split, names in classes.items():
        if odd := sorted(set(names) ^ set(class_names)):
            has = "lacks the" if odd[0] in class_names else "has another"
            raise ValueError(f"split {split!r} of {str(root)!r} {has} class {odd[0]!r}")
    mixed = {split: _mix(files, seed) for split, files in classes.items()}
    if not is_split:
        whole = mixed["train"]
        cut = round(_TRAIN_SHARE * len(whole))
        mixed = {"train": whole[:cut], "test": whole[cut:]}
        for split, examples in mixed.items():
            missing = set(range(len(class_names))) - {label for _, label in examples}
            if missing:
                raise ValueError(
                    f"class {class_names[min(missing)]!r} of {str(root)!r} has too few "
                    f"pictures to be in the split {split!r}; about ten are needed"
                )
    return mixed, class_names


def _list_classes(folder: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """Map the name of each class to its pictures."""
    names = sorted(
        path.name
        for path in folder.iterdir()
        if path.is_dir() and not path.name.startswith(".")
    )
    if len(names) < 2:
        raise ValueError(
            f"{str(folder)!r} must hold a folder for each of 2 classes or more, got "
            f"{len(names)}"
        )
    folded: dict[str, str] = {}
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"the name of class {name!r} in {str(folder)!r} is not UTF-8"
            ) from error
        other = folded.setdefault(name.casefold(), name)
        if other != name:
            raise ValueError(
                f"the classes {other!r} and {name!r} in {str(folder)!r} differ in "
                "upper and lower case alone"
            )
    found = {}
    for name in names:
        try:
            found[name] = find_pictures([folder / name])
        except ValueError as error:
            raise ValueError(
                f"class {name!r} in {str(folder)!r} holds no picture"
            ) from error
    return found


def _mix(files: dict[str, list[pathlib.Path]], seed: int) -> Examples:
    """Shuffle each class, and mix the classes evenly."""
    placed = []
    for label, paths in enumerate(files.values()):
        order = np.random.default_rng([seed, label]).permutation(len(paths))
        placed += [
            ((place + 0.5) / len(paths), label, paths[index])
            for place, index in enumerate(order)
        ]
    return [(path, label) for _, label, path in sorted(placed)]


def _stat(file: pathlib.Path, root: pathlib.Path) -> tuple[str, int, int]:
    stat = file.stat()
    return os.fspath(file.relative_to(root)), stat.st_size, stat.st_mtime_ns


def _is_grey(file: pathlib.Path) -> bool:
    """Whether a picture is stored without colours; one that can't be read is."""
    try:
        with Image.open(file) as image:
            return image.mode in _GREY
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return True


def _read(
    files: Sequence[pathlib.Path],
    root: pathlib.Path,
    *,
    channels: int,
    image_size: int | None,
    resize: Resize,
) -> list[np.ndarray]:
    """Decode pictures, in several threads, and bring them to one size."""

    def read(file: pathlib.Path) -> Any:
        try:
            image_HWC = decode_picture(file, channels=channels)
        except ValueError as error:
            return error
        if image_size is None:
            return image_HWC
        return resize_image(
            image_HWC, (image_size, image_size), how=resize, background=0
        )

    with concurrent.futures.ThreadPoolExecutor() as threads:
        images = list(threads.map(read, files))
    errors = [image for image in images if isinstance(image, ValueError)]
    if errors:
        others = f", and {len(errors) - 1} more" if len(errors) > 1 else ""
        raise ValueError(f"dataset {str(root)!r}: {errors[0]}{others}")
    _check_sizes(images, files)
    return images


def _check_sizes(images: Iterable[np.ndarray], files: Sequence[pathlib.Path]) -> None:
    """Raise ValueError if the pictures are of different sizes."""
    sizes: dict[tuple[int, ...], pathlib.Path] = {}
    for image, file in zip(images, files, strict=True):
        sizes.setdefault(image.shape[:2], file)
    if len(sizes) > 1:
        a, b = itertools.islice(sizes.items(), 2)
        shown = ", ".join(f"{str(f)!r} has {h}x{w}" for (h, w), f in (a, b))
        raise ValueError(
            "config.dataset.image_size must be given for pictures of different sizes: "
            f"{shown}"
        )
