"""The steps of an epoch: compiled once, run in stretches of about four seconds."""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from train_jax.config.models import CONVOLUTIONAL_MODELS
from train_jax.devices import compiler, processes, sharding
from train_jax.learning.state import TrainState
from train_jax.learning.step import epoch_order, make_next_step, make_train_step
from train_jax.run.experiment import Experiment

# Python looks at the metrics about this often, to show progress. Every stretch costs
# a start: on a CPU its fresh memory takes a third to two thirds of the time of a step,
# with the MNIST ViT and with ResNet-18 alike.
_SECONDS_BETWEEN_REPORTS = 4.0


class NonFiniteError(FloatingPointError):
    """The loss is not finite any more.

    Attributes:
        step: the first step in which it was not, counted from 1.
    """

    def __init__(self, step: int):
        super().__init__(
            f"the loss is not finite in step {step}; a lower "
            "config.optimizer.learning_rate, a longer warm-up or a clip_norm may help"
        )
        self.step = step


class EpochRunner:
    """Takes an experiment's steps, an epoch at a time.

    Attributes:
        seconds: how long the steps of the current epoch have taken so far.
    """

    def __init__(
        self, experiment: Experiment, state: TrainState, *, seconds: float = 0.0
    ):
        """Put the training split on the devices and compile the steps.

        Args:
            experiment: what to train.
            state: a state of the kind that `run` will be given.
            seconds: how long the steps of the epoch that it is in took before.
        """
        self._experiment = experiment
        self.seconds = seconds
        everywhere = sharding.replicated(experiment.mesh)
        self._constants = (
            sharding.put(experiment.train.examples, everywhere),
            experiment.key("steps"),
            sharding.put(experiment.runs.swept_values(), everywhere),
        )
        self._order_key = experiment.key("order")
        shuffle = functools.partial(epoch_order, num_examples=len(experiment.train))
        self._shuffle = jax.jit(
            experiment.runs.vmap(shuffle, in_axes=(0, None)), out_shardings=everywhere
        )
        started = time.perf_counter()
        # With less effort of LLVM a step of a ResNet takes 4 % more, for nothing saved.
        is_convolutional = experiment.config.model.name in CONVOLUTIONAL_MODELS
        self._take_steps = _compile_steps(
            jax.jit if is_convolutional else compiler.jit,
            _next_step(experiment),
            (state, self.order(0), *self._constants),
            experiment.state_sharding(state),
        )
        print(f"compiled in {time.perf_counter() - started:.1f} s")

    def run(
        self,
        state: TrainState,
        show: Callable[..., None],
        should_stop: Callable[[], bool] = lambda: False,
    ) -> tuple[TrainState, dict[str, Any] | None]:
        """Take the remaining steps of the epoch that the state is in.

        Args:
            state: is donated.
            show: called with the progress now and then.
            should_stop: asked now and then whether to leave the epoch.

        Returns:
            The new state and the training's part of the epoch's record, in which the
            metrics lead with the run axis R; no record if it was stopped before the
            epoch's end, or has come to a step that is to be saved.

        Raises:
            NonFiniteError: if the loss is not finite any more, in all runs.
        """
        experiment = self._experiment
        step = state.steps_done
        epoch, steps_before = divmod(step, experiment.steps_per_epoch)
        end_of_epoch = min(
            step - steps_before + experiment.steps_per_epoch, experiment.total_steps
        )
        every = experiment.config.checkpoint.every_steps or end_of_epoch
        end = min(end_of_epoch, (step // every + 1) * every)
        if not steps_before:
            self.seconds = 0.0
        loss_R = self._sums(state)["loss"] if steps_before else 0.0
        order, stretch, is_asked = self.order(epoch), 1, False
        while step < end and not is_asked:
            stretch = min(stretch, end - step)
            started = time.perf_counter()
            state = self.take_steps(stretch, state, order)
            sums = self._sums(state)
            seconds, is_asked = processes.max_over_processes(
                time.perf_counter() - started, should_stop()
            )
            step += stretch
            self.seconds += seconds
            show(
                step,
                epoch=epoch + 1,
                loss=float(np.nanmean(sums["loss"] - loss_R)) / stretch,
                images_per_second=stretch * experiment.examples_per_step / seconds,
            )
            loss_R = sums["loss"]
            stretch = max(1, round(stretch * _SECONDS_BETWEEN_REPORTS / seconds))
        return state, self._record(epoch, state) if step == end_of_epoch else None

    def take_steps(
        self, num_steps: int, state: TrainState, order: jax.Array
    ) -> TrainState:
        """Take steps of an epoch in the order that `order` gave; donates the state."""
        return self._take_steps(num_steps, state, order, *self._constants)

    def order(self, epoch: int) -> jax.Array:
        """The order of the examples in an epoch."""
        return self._shuffle(self._order_key, np.int32(epoch))

    def _record(self, epoch: int, state: TrainState) -> dict[str, Any]:
        """The training's part of the record of an epoch that ends in the state."""
        experiment, step = self._experiment, state.steps_done
        num_steps = step - epoch * experiment.steps_per_epoch
        num_examples = num_steps * experiment.examples_per_step
        sums = self._sums(state)
        return {
            "epoch": epoch + 1,
            "step": step,
            "train_loss": sums["loss"] / num_steps,
            "train_accuracy": sums["accuracy"] / num_steps,
            "learning_rate": experiment.learning_rate(step - 1),
            "images_per_second": num_examples / self.seconds,
            "seconds": self.seconds,
        }

    def _sums(self, state: TrainState) -> dict[str, np.ndarray]:
        """The epoch's metrics so far, summed over steps; NaN in runs that diverged.

        Raises:
            NonFiniteError: if all of them did.
        """
        finite_steps, sums = self._experiment.runs.rows(
            jax.device_get((state.finite_steps, state.epoch_sums))
        )
        is_finite_R = finite_steps == state.steps_done
        if not is_finite_R.any():
            raise NonFiniteError(int(finite_steps.max()) + 1)
        return {
            name: np.where(is_finite_R, sum_R, np.nan) for name, sum_R in sums.items()
        }


def _next_step(experiment: Experiment) -> Callable[..., TrainState]:
    """Make the step of all runs that the experiment's config asks for."""
    config, mesh = experiment.config, experiment.mesh

    def next_step(state, order_M, examples, key, swept) -> TrainState:
        _, tx = experiment.optimizer(swept)
        train_step = make_train_step(
            experiment.model,
            tx,
            label_smoothing=swept.get("label_smoothing", config.label_smoothing),
            ema_decay=swept.get("ema_decay", config.ema_decay),
            accumulation_steps=config.accumulation_steps,
            params_sharding=sharding.replicated(mesh) if config.fsdp else None,
        )
        take_step = make_next_step(
            train_step,
            experiment.task.make_batch,
            batch_size=config.batch_size,
            batch_sharding=sharding.batch_sharding(mesh),
        )
        return take_step(state, examples, order_M, key)

    return experiment.runs.vmap(next_step, in_axes=(0, 0, None, 0, 0))


def _compile_steps(
    jit: Callable[..., Any],
    next_step: Callable[..., TrainState],
    arguments: tuple,
    layout: Any,
) -> Callable[..., TrainState]:
    """Compile a function that takes a given number of steps.

    The number is no part of the compiled program, so that cutting an epoch into other
    stretches compiles nothing anew and changes no bit of the result.

    Args:
        jit: `jax.jit`, or `compiler.jit`.
        next_step: (state, *constants) → state.
        arguments: of `next_step`, to take the shapes from.
        layout: sharding of the state.
    """
    step = jax.jit(next_step)
    if jax.default_backend() == "cpu" and _has_convolutions(step, arguments):
        # Inside a loop XLA's CPU backend runs convolutions on a path ten times slower.
        # Everything else is a third faster there.
        jitted = jit(step, donate_argnums=0, out_shardings=layout)
        compiled_step = jitted.lower(*arguments).compile()

        def take_steps_one_by_one(num_steps: int, state: TrainState, *constants: Any):
            for _ in range(num_steps):
                state = compiled_step(state, *constants)
            return state

        return take_steps_one_by_one

    def take_steps(num_steps: jax.Array, state: TrainState, *constants: Any):
        return jax.lax.fori_loop(
            0, num_steps, lambda _, state: step(state, *constants), state
        )

    jitted = jit(take_steps, donate_argnums=1, out_shardings=layout)
    compiled = jitted.lower(np.int32(1), *arguments).compile()
    return lambda num_steps, *rest: compiled(np.int32(num_steps), *rest)


def _has_convolutions(step: Any, arguments: tuple) -> bool:
    """Whether a jitted function convolves; its trace is kept for the compilation."""
    return "conv_general_dilated" in str(step.trace(*arguments).jaxpr)
