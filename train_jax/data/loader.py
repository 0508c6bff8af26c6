"""Load batches with Grain: in threads or worker processes, from any step on."""

import contextlib
import functools
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import numpy as np

from train_jax.data.streamed import (
    StreamedImages,
    num_processors,
    random_resized_crop,
)
from train_jax.data.tfds_read import one_line

Batch = tuple[np.ndarray, ...]

# Batches that are ready before they are needed, of each worker.
_NUM_READY = 2

# How long a worker that was told to end goes on, for the steps until its parent stops.
_SECONDS_AFTER_SIGTERM = 60


class LoaderError(ValueError):
    """A batch can't be loaded."""


class Batches:
    """All batches of a training or an evaluation, as a list to read from.

    What a batch holds depends on its number alone.
    """

    def __init__(
        self,
        examples: Sequence[Any],
        indices_of: Callable[[int], np.ndarray],
        count: int,
        *,
        crop_area: tuple[float, float] | None = None,
        seed: Sequence[int] = (),
        num_threads: int | None = None,
    ):
        """Keep what the batches are made from.

        Args:
            examples: arrays whose leading axis is the example.
            indices_of: batch number → indices of its examples, (B,).
            count: number of batches.
            crop_area: see `random_resized_crop`; None for whole images.
            seed: of the crops.
            num_threads: that decode in one process; None for as many as processors.
        """
        self._examples = tuple(examples)
        self._indices_of = indices_of
        self._count = count
        self._crop_area = crop_area
        self._seed = tuple(seed)
        self._num_threads = num_threads

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Batch]:
        return (self[number] for number in range(self._count))

    def __getitem__(self, number: int) -> Batch:
        """Load a batch: the arrays of its examples, and their indices, int32 (B,)."""
        index_B = self._indices_of(number)
        arrays = (self._take(x, index_B, number) for x in self._examples)
        return (*arrays, index_B.astype(np.int32))

    def _take(self, array: Any, index_B: np.ndarray, number: int) -> np.ndarray:
        if not isinstance(array, StreamedImages):
            return array[index_B]
        crop = None
        if self._crop_area is not None:
            crop = functools.partial(self._crop, number)
        return array.take(index_B, crop=crop, threads=self._num_threads)

    def _crop(self, number: int, image_HWC: np.ndarray, index: int) -> np.ndarray:
        rng = np.random.default_rng([*self._seed, number, index])
        return random_resized_crop(image_HWC, rng, area=self._crop_area or (1, 1))


def load_batches(
    batches: Batches, *, start: int = 0, num_workers: int = 0
) -> Generator[Batch]:
    """Load batches in order, some ahead of their use.

    Args:
        batches: the list of them.
        start: number of the first one.
        num_workers: processes that load them; 0 for a thread of this one.

    Raises:
        LoaderError: if one can't be loaded: a picture is damaged, a worker is lost.
    """
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain reads some of absl's flags.
    ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_NUM_READY)
    source: Any = grain.MapDataset.source(batches)  # type: ignore (a list to read from)
    dataset = source[start:].to_iter_dataset(ahead)
    if num_workers:
        options = grain.MultiprocessingOptions(num_workers, _NUM_READY)
        dataset = dataset.mp_prefetch(options, worker_init_fn=_set_up_worker)
        # Through pipes: what lies in shared memory is not always given back at the end,
        # and a container has little of it.
        pipes = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
        dataset = grain.experimental.WithOptionsIterDataset(dataset, pipes)
    iterator = iter(dataset)
    with contextlib.closing(iterator):
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                return
            except (ValueError, OSError, RuntimeError) as error:
                raise LoaderError(one_line(error)) from error
            yield batch


def default_workers() -> int:
    """Choose the number of worker processes: one for each eight processors."""
    return num_processors() // 8


def threads_of_each(num_workers: int) -> int:
    """Choose the number of threads that decode in each process."""
    return max(num_processors() // max(num_workers, 1), 1)


def _set_up_worker(index: int, count: int) -> None:
    """Keep a worker from what is its parent's: signals, accelerators, messages."""
    del index, count
    import jax

    # The accelerators belong to the parent.
    jax.config.update("jax_platforms", "cpu")
    warnings.simplefilter("ignore")
    # Ctrl-C, and a scheduler's SIGTERM, are sent to a whole group of processes. The
    # parent stops its workers when it has saved; one that it leaves behind ends itself.
    with contextlib.suppress(ValueError):  # Not the main thread.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_SECONDS_AFTER_SIGTERM))
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
