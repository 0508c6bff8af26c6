"""Arrays of examples that are read and decoded when they are asked for."""

import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np

from train_jax.data.resize import Resize, resize_image
from train_jax.data.split import ImageSplit

# (image, index) → image, applied before the image is resized.
Crop = Callable[[np.ndarray, int], np.ndarray]


class Source(Protocol):
    """A list of encoded images with labels, which can be pickled."""

    def read_image(self, place: int) -> np.ndarray:
        """Read and decode an image: uint8 (H, W, C), of any size.

        Raises:
            ValueError: if it can't be, naming it.
        """
        ...

    def read_label(self, place: int) -> int:
        """Read the label of an image."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class _Streamed:
    """An array of M examples that is read when it is asked for.

    A slice is such an array again; one index, or an array of them, gives numbers.

    Attributes:
        source: has the examples.
        place_M: the place of each example in the source.
    """

    source: Source
    place_M: np.ndarray
    dtype: ClassVar[np.dtype]

    def __len__(self) -> int:
        return len(self.place_M)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return dataclasses.replace(self, place_M=self.place_M[index])
        taken = self.take(np.atleast_1d(index))
        return taken if np.ndim(index) else taken[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        whole = self.take(np.arange(len(self)))
        return whole.astype(dtype or self.dtype, copy=False)

    def take(self, index_B: np.ndarray) -> np.ndarray:
        """Read the examples of some indices."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, eq=False)
class StreamedLabels(_Streamed):
    """The labels of a streamed split, int32 (M,).

    Attributes:
        num_classes: number of classes Y.
    """

    num_classes: int
    dtype = np.dtype(np.int32)

    @property
    def shape(self) -> tuple[int]:
        """The shape of all labels."""
        return (len(self),)

    def take(self, index_B: np.ndarray) -> np.ndarray:
        """Read the labels of some indices: int32 (B,).

        Raises:
            ValueError: for an example without a label.
        """
        places = map(int, self.place_M[index_B])
        label_B = np.array([self.source.read_label(p) for p in places], self.dtype)
        if np.any((label_B < 0) | (label_B >= self.num_classes)):
            raise ValueError(
                "a split of config.dataset has examples without a label: expected 0 to "
                f"{self.num_classes - 1}, got {label_B.min()} to {label_B.max()}"
            )
        return label_B


@dataclasses.dataclass(frozen=True, eq=False)
class StreamedImages(_Streamed):
    """The images of a streamed split, uint8 (M, H, W, C).

    Attributes:
        image_shape: height, width and channels, to which images are brought.
        resize: how, see `resize_image`; None for images that all have their size.
    """

    image_shape: tuple[int, int, int]
    resize: Resize | None = "crop"
    dtype = np.dtype(np.uint8)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of all images, decoded."""
        return (len(self), *self.image_shape)

    def take(
        self,
        index_B: np.ndarray,
        *,
        crop: Crop | None = None,
        threads: int | None = None,
    ) -> np.ndarray:
        """Decode images, in several threads, and bring them to their size.

        Args:
            index_B: their indices in the split.
            crop: changes an image before it is resized.
            threads: number of threads; None for one for each processor.

        Returns:
            image_BHWC: uint8.
        """
        image_BHWC = np.empty((len(index_B), *self.image_shape), np.uint8)

        def read(number: int) -> None:
            image_BHWC[number] = self._read(int(index_B[number]), crop)

        list(_threads(threads).map(read, range(len(index_B))))
        return image_BHWC

    def _read(self, index: int, crop: Crop | None = None) -> np.ndarray:
        """Decode an image and bring it to its size."""
        image_HWC = self.source.read_image(int(self.place_M[index]))
        if self.resize is None and image_HWC.shape != self.image_shape:
            raise ValueError(
                "config.dataset.image_size must be given for images of different "
                f"sizes, such as {self.image_shape[:2]} and {image_HWC.shape[:2]}"
            )
        if crop is not None:
            image_HWC = crop(image_HWC, index)
        how: Resize = self.resize if self.resize and crop is None else "stretch"
        return resize_image(image_HWC, self.image_shape[:2], how=how, background=0)


@functools.cache
def _threads(count: int | None) -> concurrent.futures.ThreadPoolExecutor:
    """Start threads, once in a process."""
    return concurrent.futures.ThreadPoolExecutor(count or num_processors())


def num_processors() -> int:
    """Count the processors that this process may use; a cluster gives it some."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def stream_split(
    source: Source,
    count: int,
    *,
    channels: int,
    image_size: int | None,
    class_names: Sequence[str],
    resize: Resize,
) -> ImageSplit:
    """Make a split of a source's first `count` examples; only the first may be read.

    Args:
        source: the examples.
        count: number of examples M.
        channels: number of channels of an image.
        image_size: side to which images are brought, pixels; None to leave them, if
            all are as large as the first.
        class_names: a name for each class.
        resize: how images are resized, see `resize_image`.
    """
    how: Resize | None = resize
    if image_size is None:
        height, width, _ = source.read_image(0).shape
        how = None
    else:
        height = width = image_size
    image_shape = (height, width, channels)
    place_M = np.arange(count)
    images: Any = StreamedImages(source, place_M, image_shape, how)
    labels: Any = StreamedLabels(source, place_M, len(class_names))
    return ImageSplit(images, labels, tuple(class_names))


def random_resized_crop(
    image_HWC: np.ndarray,
    rng: np.random.Generator,
    *,
    area: tuple[float, float],
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> np.ndarray:
    """Cut a rectangle of random area and proportions out of an image.

    Of ten rectangles the first that fits into the image is taken; if none does, the
    largest one in the middle whose proportions are allowed.

    Args:
        image_HWC: any dtype.
        rng: where the rectangle comes from.
        area: smallest and largest share of the image's area.
        ratio: smallest and largest ratio of width to height.

    Returns:
        A view of the image.

    References: "Inception crop", arXiv:1409.4842, section 6.
    """
    height, width, _ = image_HWC.shape
    for _ in range(10):
        share = rng.uniform(*area)
        proportion = np.exp(rng.uniform(*np.log(ratio)))
        crop_width = round((height * width * share * proportion) ** 0.5)
        crop_height = round((height * width * share / proportion) ** 0.5)
        if 0 < crop_height <= height and 0 < crop_width <= width:
            top = rng.integers(height - crop_height + 1)
            left = rng.integers(width - crop_width + 1)
            break
    else:
        proportion = np.clip(width / height, *ratio)
        crop_width = min(width, round(height * proportion))
        crop_height = min(height, round(width / proportion))
        top, left = (height - crop_height) // 2, (width - crop_width) // 2
    return image_HWC[top : top + crop_height, left : left + crop_width]
