"""Compile the steps of a training."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from train_jax.learning.state import TrainState


@dataclasses.dataclass(frozen=True)
class Steps:
    """The steps of a training, which can be lowered for any devices.

    Attributes:
        next_step: of one run, see `make_next_step`.
        next_batch: of one run, see `batch_of_step`.
        data: descriptions of the examples and of their order, or of a streamed batch.
        map_runs: turns a function of one run into one of all; see `Runs.map`.
        per_epoch: number of whole batches in the training split.
        total: length of the training.
        jit: what compiles: `jax.jit` or a variant.
        in_a_loop: whether several steps are compiled as one loop.
    """

    next_step: Callable[..., TrainState]
    next_batch: Callable[..., Any]
    data: tuple[Any, Any]
    map_runs: Callable[..., Any]
    per_epoch: int
    total: int
    jit: Callable[..., Any]
    in_a_loop: bool

    @property
    def step(self) -> Callable[..., TrainState]:
        """The step of all runs, (state, examples, index, key) → state."""
        return self.map_runs(self.next_step, in_axes=(0, None, 0, 0))

    def lower(self, state: TrainState, *constants: Any) -> Any:
        """Lower the program that takes steps, for arrays or their descriptions.

        A loop takes any number of steps. The number is no part of the compiled program,
        so that cutting an epoch into other stretches compiles nothing anew and changes
        no bit of the result.

        Args:
            state: is donated.
            *constants: the examples, the index (see `make_next_step`) and the key.

        Returns:
            A `jax.stages.Lowered`.
        """
        layout = jax.tree.map(lambda x: x.sharding, state)
        if not self.in_a_loop:
            jitted = self.jit(self.step, donate_argnums=0, out_shardings=layout)
            return jitted.lower(state, *constants)
        step = jax.jit(self.next_step)

        def take_steps(num_steps: jax.Array, state: TrainState, *constants: Any):
            return jax.lax.fori_loop(
                0, num_steps, lambda _, state: step(state, *constants), state
            )

        take_steps = self.map_runs(take_steps, in_axes=(None, 0, None, 0, 0))
        jitted = self.jit(take_steps, donate_argnums=1, out_shardings=layout)
        return jitted.lower(np.int32(1), state, *constants)

    def compile(self, state: TrainState, *constants: Any) -> Callable[..., TrainState]:
        """Compile the program, see `lower`.

        Returns:
            A function (number of steps, state, *constants) → state.
        """
        compiled = self.lower(state, *constants).compile()
        if self.in_a_loop:
            return lambda num_steps, *rest: compiled(np.int32(num_steps), *rest)

        def take_steps(num_steps: int, state: TrainState, *constants: Any):
            return functools.reduce(
                lambda state, _: compiled(state, *constants), range(num_steps), state
            )

        return take_steps
