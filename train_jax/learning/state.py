"""All that changes in training, as one immutable pytree."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

PyTree = Any


class TrainState(flax.struct.PyTreeNode):
    """The state of a training run.

    Attributes:
        step: number of steps done, int32 scalar.
        finite_steps: number of steps until the loss was first not finite, int32 scalar.
        epoch_sums: metrics summed over the epoch's steps so far, float32 scalars.
        params: the parameters.
        batch_stats: BatchNorm's running statistics; empty without BatchNorm.
        opt_state: the optimiser's state.
        ema: moving averages of the parameters and, with BatchNorm, of its running
            statistics: those of the newest parameters do not fit averaged ones. None
            without averaging.
    """

    step: jax.Array
    finite_steps: jax.Array
    epoch_sums: dict[str, jax.Array]
    params: PyTree
    batch_stats: PyTree
    opt_state: optax.OptState
    ema: PyTree | None

    @classmethod
    def create(
        cls, variables: PyTree, tx: optax.GradientTransformation, *, ema: bool = False
    ) -> "TrainState":
        """Start from a model's initial variables."""
        params, batch_stats = variables["params"], variables.get("batch_stats", {})
        averaged = {"params": params, "batch_stats": batch_stats}
        return cls(
            step=jnp.zeros((), jnp.int32),
            finite_steps=jnp.zeros((), jnp.int32),
            epoch_sums={"loss": jnp.zeros(()), "accuracy": jnp.zeros(())},
            params=params,
            batch_stats=batch_stats,
            opt_state=tx.init(params),
            # A copy: donating the state must not donate one buffer twice.
            ema=jax.tree.map(jnp.copy, averaged) if ema else None,
        )

    @property
    def steps_done(self) -> int:
        """Number of steps done, on the host; all runs have done the same number."""
        return int(np.max(jax.device_get(self.step)))

    @property
    def eval_variables(self) -> PyTree:
        """The variables to evaluate with: the averaged ones, if there are any."""
        if self.ema is not None:
            return self.ema
        return {"params": self.params, "batch_stats": self.batch_stats}
