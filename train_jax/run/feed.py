"""Feed the training steps with examples: from the devices' memory, or streamed."""

import dataclasses
import functools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from train_jax.data.loader import Batches, load_batches
from train_jax.devices import sharding
from train_jax.learning.batch import KEY_IMPL, epoch_order

# The arrays of examples, and their order (in memory) or their indices (streamed).
Data = tuple[tuple[jax.Array, ...], jax.Array]


class Feed(Protocol):
    """Gives the steps of a training their examples."""

    def __call__(self, step: int, num_steps: int) -> Iterable[tuple[int, Data]]:
        """Give what is needed for some steps of one epoch.

        Args:
            step: the number of steps that were taken before.
            num_steps: how many are taken.

        Yields:
            Numbers of steps, and the examples for them.
        """
        ...

    def close(self) -> None:
        """Stop what loads in the background."""
        ...


class MemoryFeed:
    """A split in the devices' memory, and the order of an epoch's examples.

    Every device holds the whole split; `select_examples` shards the batch.
    """

    def __init__(
        self,
        examples: Sequence[np.ndarray],
        shuffle: Callable[[np.int32], jax.Array],
        *,
        steps_per_epoch: int,
        examples_sharding: NamedSharding,
    ):
        """Put the examples on the devices.

        Args:
            examples: the arrays of the split.
            shuffle: epoch → the order of its examples.
            steps_per_epoch: number of steps in an epoch.
            examples_sharding: of the arrays; every device holds all of them.
        """
        self._examples = sharding.put(tuple(examples), examples_sharding)
        self._order = functools.lru_cache(maxsize=1)(
            lambda epoch: shuffle(np.int32(epoch))
        )
        self._steps_per_epoch = steps_per_epoch
        self._order(0)  # is compiled here, not in the time of the first epoch

    def __call__(self, step: int, num_steps: int) -> Iterator[tuple[int, Data]]:
        """Give the whole split, and the order of the epoch; see `Feed`."""
        yield num_steps, (self._examples, self._order(step // self._steps_per_epoch))

    def close(self) -> None:
        """Do nothing: nothing loads in the background."""


class StreamFeed:
    """Batches that are loaded while the steps before them are computed."""

    def __init__(
        self,
        batches: Batches,
        *,
        batch_size: int,
        batch_sharding: NamedSharding,
        num_workers: int,
    ):
        """Keep what the batches are loaded with; nothing is loaded yet.

        Args:
            batches: this process's share of the batch of each step.
            batch_size: number of examples in a batch, over all processes.
            batch_sharding: sharding of a batch.
            num_workers: see `load_batches`.
        """
        self._batches = batches
        self._batch_size = batch_size
        self._batch_sharding = batch_sharding
        self._num_workers = num_workers
        self._position = -1
        self._loading: Generator[Any] = (_ for _ in ())

    def __call__(self, step: int, num_steps: int) -> Iterator[tuple[int, Data]]:
        """Give the batch of each step; see `Feed`.

        Raises:
            LoaderError: see `load_batches`.
        """
        if step != self._position:
            self.close()
            self._loading = load_batches(
                self._batches, start=step, num_workers=self._num_workers
            )
            self._position = step
        for _ in range(num_steps):
            # The devices still work on the step before.
            *examples, index_B = sharding.put_rows(
                next(self._loading), self._batch_size, self._batch_sharding
            )
            self._position += 1
            yield 1, (tuple(examples), index_B)

    def close(self) -> None:
        """Stop loading."""
        self._loading.close()
        self._position = -1


@dataclasses.dataclass
class StepIndices:
    """The indices of the examples of a step's batch, or of some of its rows.

    Attributes:
        key_data: of the key of the epochs' order.
        num_examples: number of examples M in the split.
        batch_size: number of examples in a batch.
        rows: of the batch, which of them.
    """

    key_data: np.ndarray
    num_examples: int
    batch_size: int
    rows: np.ndarray
    _last: tuple[int, np.ndarray] | None = dataclasses.field(default=None, init=False)

    def __call__(self, step: int) -> np.ndarray:
        """Look the indices up, int32."""
        epoch, batch = divmod(step, self.num_examples // self.batch_size)
        return self._order(epoch)[batch * self.batch_size + self.rows]

    def _order(self, epoch: int) -> np.ndarray:
        if self._last is None or self._last[0] != epoch:
            data = jnp.asarray(self.key_data)
            key = jax.random.wrap_key_data(data, impl=KEY_IMPL)
            order_M = np.asarray(epoch_order(key, epoch, self.num_examples))
            self._last = (epoch, order_M)
        return self._last[1]
