"""The steps of an epoch: compiled once, run in stretches of about two seconds."""

import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from train_jax import sharding
from train_jax.experiment import Experiment
from train_jax.state import TrainState
from train_jax.step import (
    Carry,
    epoch_order,
    make_next_step,
    make_train_step,
    zero_metrics,
)

# Python looks at the metrics about this often, to show progress. Every stretch costs
# a start: on CPU its 100 MB of fresh memory take two thirds of the time of a step of
# the MNIST ViT.
_SECONDS_BETWEEN_REPORTS = 2.0


class EpochRunner:
    """Runs an experiment's steps, an epoch at a time."""

    def __init__(self, experiment: Experiment, state: TrainState):
        """Put the training split on the devices and compile the steps.

        Args:
            experiment: what to train.
            state: a state of the kind that `run` will be given.
        """
        self._experiment = experiment
        self._everywhere = sharding.replicated(experiment.mesh)
        self._examples = jax.device_put(experiment.train.examples, self._everywhere)
        self._key = jax.device_put(experiment.key("steps"), self._everywhere)
        started = time.perf_counter()
        self._take_steps = _compile_steps(
            _next_step(experiment),
            (self._put_zeros(state), self._examples, self._order(0), self._key),
            self._everywhere,
        )
        print(f"compiled in {time.perf_counter() - started:.1f} s")

    def run(
        self, state: TrainState, show: Callable[..., None]
    ) -> tuple[TrainState, dict[str, Any]]:
        """Take the remaining steps of the epoch that the state is in.

        Args:
            state: is donated.
            show: called with the progress now and then.

        Returns:
            The new state and the training's part of the epoch's record.

        Raises:
            FloatingPointError: if the loss is not finite any more.
        """
        experiment = self._experiment
        batch_size = experiment.config.batch_size
        first_step = step = int(state.step)
        epoch = step // experiment.steps_per_epoch
        epoch_end = (epoch + 1) * experiment.steps_per_epoch
        last_step = min(epoch_end, experiment.total_steps)
        arguments = (self._examples, self._order(epoch), self._key)
        totals = {"loss": 0.0, "accuracy": 0.0}
        stretch = 1
        started = time.perf_counter()
        while step < last_step:
            stretch = min(stretch, last_step - step)
            stretch_started = time.perf_counter()
            state, sums = self._take_steps(stretch, self._put_zeros(state), *arguments)
            sums = {name: float(value) for name, value in sums.items()}
            seconds = time.perf_counter() - stretch_started
            _check_finite(sums["loss"], step + 1, step + stretch)
            totals = {name: totals[name] + sums[name] for name in totals}
            step += stretch
            show(
                step,
                epoch=epoch + 1,
                loss=sums["loss"] / stretch,
                images_per_second=stretch * batch_size / seconds,
            )
            stretch = max(1, round(stretch * _SECONDS_BETWEEN_REPORTS / seconds))
        seconds = time.perf_counter() - started
        num_steps = step - first_step
        return state, {
            "epoch": epoch + 1,
            "step": step,
            "train_loss": totals["loss"] / num_steps,
            "train_accuracy": totals["accuracy"] / num_steps,
            "learning_rate": float(jnp.asarray(experiment.schedule(step - 1))),
            "images_per_second": num_steps * batch_size / seconds,
            "seconds": seconds,
        }

    def _put_zeros(self, state: TrainState) -> Carry:
        """Join the state with metrics to sum up from zero."""
        return state, jax.device_put(zero_metrics(), self._everywhere)

    def _order(self, epoch: int) -> jax.Array:
        """The order of the examples in an epoch."""
        num_examples = len(self._experiment.train)
        order_M = epoch_order(self._experiment.key("order"), epoch, num_examples)
        return jax.device_put(order_M, self._everywhere)


def _next_step(experiment: Experiment) -> Callable[..., Carry]:
    """Make the step that the experiment's config asks for."""
    config = experiment.config
    train_step = make_train_step(
        experiment.model,
        experiment.tx,
        label_smoothing=config.label_smoothing,
        ema_decay=config.ema_decay,
        accumulation_steps=config.accumulation_steps,
    )
    return make_next_step(
        train_step,
        experiment.task.make_batch,
        batch_size=config.batch_size,
        batch_sharding=sharding.batch_sharding(experiment.mesh),
    )


def _compile_steps(
    next_step: Callable[..., Carry], arguments: tuple, layout: Any
) -> Callable[..., Carry]:
    """Compile a function that takes a given number of steps.

    The number is no part of the compiled program, so that cutting an epoch into other
    stretches compiles nothing anew and changes no bit of the result.

    Args:
        next_step: (carry, *constants) → carry.
        arguments: of `next_step`, to take the shapes from.
        layout: sharding of the carry.
    """
    step = jax.jit(next_step)
    if jax.default_backend() == "cpu" and _has_convolutions(step, arguments):
        # Inside a loop XLA's CPU backend runs convolutions on a path ten times slower.
        # Everything else is a third faster there.
        jitted = jax.jit(step, donate_argnums=0, out_shardings=layout)
        compiled_step = jitted.lower(*arguments).compile()

        def take_steps_one_by_one(num_steps: int, carry: Carry, *constants: Any):
            for _ in range(num_steps):
                carry = compiled_step(carry, *constants)
            return carry

        return take_steps_one_by_one

    def take_steps(num_steps: jax.Array, carry: Carry, *constants: Any):
        return jax.lax.fori_loop(
            0, num_steps, lambda _, carry: step(carry, *constants), carry
        )

    jitted = jax.jit(take_steps, donate_argnums=1, out_shardings=layout)
    compiled = jitted.lower(jnp.int32(1), *arguments).compile()
    return lambda num_steps, *rest: compiled(jnp.int32(num_steps), *rest)


def _has_convolutions(step: Any, arguments: tuple) -> bool:
    """Whether a jitted function convolves; its trace is kept for the compilation."""
    return "conv_general_dilated" in str(step.trace(*arguments).jaxpr)


def _check_finite(loss: float, first_step: int, last_step: int) -> None:
    """Raise FloatingPointError if a stretch of steps made the loss blow up."""
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the loss became {loss} between steps {first_step} and {last_step}; a "
            "lower config.optimizer.learning_rate, a longer warm-up or a clip_norm may "
            "help"
        )
