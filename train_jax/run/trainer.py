"""Take training steps, an epoch at a time, and compute the epoch's metrics."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from train_jax.devices import processes
from train_jax.learning.batch import Batch
from train_jax.learning.optim import last_learning_rate
from train_jax.learning.state import TrainState
from train_jax.run.failures import NonFiniteError
from train_jax.run.feed import Feed
from train_jax.run.steps import Steps

# Python reads the metrics about this often, to show progress. On a CPU every start of
# the compiled loop takes fresh memory, which costs a third to two thirds of a step.
_SECONDS_BETWEEN_REPORTS = 4.0


class Trainer:
    """Takes training steps, an epoch at a time.

    Attributes:
        steps_per_epoch: number of whole batches in the training split.
        total_steps: length of the training.
        feed: gives the steps their examples.
        epoch_seconds: how long the steps of the current epoch have taken so far.
    """

    def __init__(
        self,
        steps: Steps,
        feed: Feed,
        step_key: jax.Array,
        *,
        examples_per_step: int,
    ):
        """Keep the parts; `compile` has to be called next.

        Args:
            steps: of the training.
            feed: gives them their examples.
            step_key: key of the steps, of each run.
            examples_per_step: number of examples in a step of all runs.
        """
        self.steps_per_epoch = steps.per_epoch
        self.total_steps = steps.total
        self.epoch_seconds = 0.0
        self._examples_per_step = examples_per_step
        self.feed = feed
        self._steps = steps
        self._step_key = step_key

    @property
    def num_images(self) -> int:
        """Number of images in all steps of all runs."""
        return self.total_steps * self._examples_per_step

    @property
    def num_epochs(self) -> int:
        """Number of epochs; the last one may be cut short."""
        return math.ceil(self.total_steps / self.steps_per_epoch)

    def compile(self, state: TrainState) -> float:
        """Compile the steps for such a state; its shapes and shardings suffice.

        Nothing is exchanged with other processes, so that a thread may do it.

        Returns:
            How long it took, seconds.
        """
        started = time.perf_counter()
        self._compiled = self._steps.compile(state)
        return time.perf_counter() - started

    def take_steps(self, num_steps: int, state: TrainState, step: int) -> TrainState:
        """Take steps of one epoch; donates the state.

        Args:
            num_steps: how many.
            state: the state.
            step: number of steps that it has taken.
        """
        for count, data in self.feed(step, num_steps):
            # So that few batches wait in the devices' memory.
            jax.block_until_ready(state)
            state = self._compiled(count, state, *data, self._step_key)
        return state

    def next_batch(self, state: TrainState) -> tuple[Batch, jax.Array]:
        """Make the batch of the next step, of all runs, and the data of its key."""

        def make(*args: Any) -> tuple[Batch, jax.Array]:
            batch, dropout_key = self._steps.next_batch(*args)
            return batch, jax.random.key_data(dropout_key)

        make = jax.jit(self._steps.map_runs(make, in_axes=(0, None, 0, 0)))
        ((_, data),) = self.feed(state.steps_done, 1)
        return make(state.step, *data, self._step_key)

    def advance(self, state: TrainState, step: int) -> TrainState:
        """Train up to a step, without a report; donates the state."""
        while state.steps_done < step:
            done = state.steps_done
            left = self.steps_per_epoch - done % self.steps_per_epoch
            state = self.take_steps(min(step - done, left), state, done)
        return state

    def run(
        self,
        state: TrainState,
        show: Callable[..., None],
        should_stop: Callable[[], bool] = lambda: False,
        *,
        stop_every: int | None = None,
        stop_at: Sequence[int] = (),
    ) -> tuple[TrainState, dict[str, Any] | None]:
        """Take the remaining steps of the epoch that the state is in.

        Args:
            state: is donated.
            show: called with the progress now and then.
            should_stop: asked now and then whether to leave the epoch.
            stop_every: leave the epoch after every so many steps.
            stop_at: leave it at these steps as well.

        Returns:
            The new state; the epoch's metrics (loss, accuracy and learning rate (R,),
            the others scalars), or None if it is not over.

        Raises:
            NonFiniteError: if the loss is not finite any more, in all runs.
        """
        step = state.steps_done
        epoch, steps_before = divmod(step, self.steps_per_epoch)
        epoch_end = min((epoch + 1) * self.steps_per_epoch, self.total_steps)
        end = min([epoch_end, *_stops_after(step, stop_every, stop_at)])
        if not steps_before:
            self.epoch_seconds = 0.0
        loss_R = _sums(state)["loss"] if steps_before else 0.0
        stretch, is_asked = 1, False
        while step < end and not is_asked:
            stretch = min(stretch, end - step)
            started = time.perf_counter()
            state = self.take_steps(stretch, state, step)
            sums = _sums(state)
            seconds, is_asked = processes.max_over_processes(
                time.perf_counter() - started, should_stop()
            )
            step += stretch
            self.epoch_seconds += seconds
            show(
                step,
                epoch=epoch + 1,
                loss=float(np.nanmean(sums["loss"] - loss_R)) / stretch,
                images_per_second=stretch * self._examples_per_step / seconds,
            )
            loss_R = sums["loss"]
            stretch = max(1, round(stretch * _SECONDS_BETWEEN_REPORTS / seconds))
        return state, self._metrics(epoch, state) if step == epoch_end else None

    def _metrics(self, epoch: int, state: TrainState) -> dict[str, Any]:
        """The training metrics of an epoch that ends in the state."""
        step = state.steps_done
        num_steps = step - epoch * self.steps_per_epoch
        sums = _sums(state)
        learning_rate = jax.device_get(last_learning_rate(state.opt_state))
        return {
            "epoch": epoch + 1,
            "step": step,
            **{f"train_{name}": sum_R / num_steps for name, sum_R in sums.items()},
            "learning_rate": np.atleast_1d(learning_rate),
            "images_per_second": num_steps
            * self._examples_per_step
            / self.epoch_seconds,
            "seconds": self.epoch_seconds,
        }


def _stops_after(step: int, every: int | None, at: Sequence[int]) -> list[int]:
    """List the next steps at which the epoch is to be left."""
    stops = [each for each in at if each > step]
    if every is not None:
        stops.append((step // every + 1) * every)
    return stops


def _sums(state: TrainState) -> dict[str, np.ndarray]:
    """Read the epoch's sums of each metric, (R,); NaN in runs that diverged.

    Raises:
        NonFiniteError: if all of them did.
    """
    finite_steps_R, sums = jax.tree.map(
        np.atleast_1d, jax.device_get((state.finite_steps, state.epoch_sums))
    )
    is_finite_R = finite_steps_R == state.steps_done
    if not is_finite_R.any():
        raise NonFiniteError(int(finite_steps_R.max()) + 1)
    return {k: np.where(is_finite_R, sum_R, np.nan) for k, sum_R in sums.items()}
