"""Compile the steps of a training."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from train_jax.devices import memory
from train_jax.learning.state import TrainState


@dataclasses.dataclass(frozen=True)
class Steps:
    """The steps of a training, which can be lowered for any devices.

    Attributes:
        next_step: of one run, see `make_next_step`.
        next_batch: of one run, see `batch_of_step`.
        inputs: descriptions of the examples, the index and the key, as `next_step`
            takes them; of all runs.
        map_runs: turns a function of one run into one of all; see `Runs.map`.
        per_epoch: number of whole batches in the training split.
        total: length of the training.
        jit: what compiles: `jax.jit` or a variant.
        in_a_loop: whether several steps are compiled as one loop.
    """

    next_step: Callable[..., TrainState]
    next_batch: Callable[..., Any]
    inputs: tuple[Any, Any, Any]
    map_runs: Callable[..., Any]
    per_epoch: int
    total: int
    jit: Callable[..., Any]
    in_a_loop: bool

    @property
    def step(self) -> Callable[..., TrainState]:
        """The step of all runs, (state, examples, index, key) → state."""
        return self.map_runs(self.next_step, in_axes=(0, None, 0, 0))

    def lower(self, state: TrainState) -> Any:
        """Lower the program that takes steps, for a state or its description.

        A loop takes any number of steps. The number is no part of the compiled program,
        so that cutting an epoch into other stretches compiles nothing anew and changes
        no bit of the result.

        Returns:
            A `jax.stages.Lowered`; the state is donated.
        """
        shardings = jax.tree.map(lambda x: x.sharding, state)
        if not self.in_a_loop:
            jitted = self.jit(self.step, donate_argnums=0, out_shardings=shardings)
            return jitted.lower(state, *self.inputs)
        step = jax.jit(self.next_step)

        def take_steps(num_steps: jax.Array, state: TrainState, *inputs: Any):
            return jax.lax.fori_loop(
                0, num_steps, lambda _, state: step(state, *inputs), state
            )

        take_steps = self.map_runs(take_steps, in_axes=(None, 0, None, 0, 0))
        jitted = self.jit(take_steps, donate_argnums=1, out_shardings=shardings)
        return jitted.lower(np.int32(1), state, *self.inputs)

    def compile(self, state: TrainState) -> Callable[..., TrainState]:
        """Compile the program, see `lower`.

        Returns:
            A function (number of steps, state, examples, index, key) → state.
        """
        compiled = self.lower(state).compile()
        memory.warn_of_lack(compiled)
        if self.in_a_loop:
            return lambda num_steps, *rest: compiled(np.int32(num_steps), *rest)

        def call(num_steps: int, state: TrainState, *inputs: Any):
            for _ in range(num_steps):
                state = compiled(state, *inputs)
            return state

        return call
