"""The training state: all that changes in training, as one immutable pytree."""

import functools
from typing import Any

import flax.struct
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax

PyTree = Any


class TrainState(flax.struct.PyTreeNode):
    """The state of a training run.

    Attributes:
        step: number of steps done, int32 scalar.
        finite_steps: number of steps before the loss was first not finite, int32
            scalar.
        epoch_sums: metrics summed over the epoch's steps so far, float32 scalars.
        params: the parameters.
        batch_stats: BatchNorm's running statistics; empty without BatchNorm.
        opt_state: the optimiser's state.
        label_smoothing: share of the target spread evenly over all classes, float32
            scalar.
        ema_decay: decay rate of the moving averages, float32 scalar; None for none.
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
    label_smoothing: jax.Array
    ema_decay: jax.Array | None
    ema: PyTree | None

    @classmethod
    def create(
        cls,
        variables: PyTree,
        tx: optax.GradientTransformation,
        *,
        label_smoothing: jax.Array | float = 0.0,
        ema_decay: jax.Array | float | None = None,
    ) -> "TrainState":
        """Start from a model's initial variables."""
        params, batch_stats = variables["params"], variables.get("batch_stats", {})
        averaged = {"params": params, "batch_stats": batch_stats}
        has_ema = ema_decay is not None
        return cls(
            step=jnp.zeros((), jnp.int32),
            finite_steps=jnp.zeros((), jnp.int32),
            epoch_sums={"loss": jnp.zeros(()), "accuracy": jnp.zeros(())},
            params=params,
            batch_stats=batch_stats,
            opt_state=tx.init(params),
            label_smoothing=jnp.asarray(label_smoothing, jnp.float32),
            ema_decay=jnp.asarray(ema_decay, jnp.float32) if has_ema else None,
            # A copy: donating the state must not donate one buffer twice.
            ema=jax.tree.map(jnp.copy, averaged) if has_ema else None,
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


def count_parameters(params: PyTree) -> int:
    """Count the scalars in a parameter tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@jax.jit
def has_finite_params(state: TrainState) -> jax.Array:
    """Whether all parameters are finite; of several runs, those of at least one."""
    axes = jnp.ndim(state.finite_steps)  # 1 with a run axis
    is_finite = [
        jnp.isfinite(x).all(axis=tuple(range(axes, x.ndim)))
        for x in jax.tree.leaves(state.params)
    ]
    return functools.reduce(jnp.logical_and, is_finite).any()


def kernel_checksums(params: PyTree) -> dict[str, int]:
    """Compute a checksum of each kernel, to see whether it has changed.

    Of a kernel that several devices share, only the part on the first one counts.
    """
    flat: dict[str, Any] = flax.traverse_util.flatten_dict(params, sep="/")
    kernels = {k: v for k, v in flat.items() if k.endswith("kernel")}
    parts = jax.device_get({k: v.addressable_data(0) for k, v in kernels.items()})
    return {k: int(v.view(np.uint32).sum(dtype=np.uint32)) for k, v in parts.items()}
