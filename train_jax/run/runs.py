"""Several runs in one program: they differ in the seed or in swept fields."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from train_jax.config.fields import Config
from train_jax.devices import policy, sharding
from train_jax.learning.batch import KEY_IMPL


@dataclasses.dataclass(frozen=True)
class Runs:
    """R independent runs that are trained in one program, and the devices they share.

    With more than one, every array of the training state and of the metrics leads with
    the run axis R, and what is done to all runs is what is done to one, mapped over
    that axis. A single run has no such axis.

    Attributes:
        seeds: the seed of each run.
        swept: field of the config → its value in each run.
        mesh: the devices, see `sharding.make_mesh`.
        in_turn: whether one run is computed after the other, not all at once.
    """

    seeds: tuple[int, ...]
    swept: dict[str, tuple[float, ...]]
    mesh: Mesh
    in_turn: bool = False

    @classmethod
    def combine(
        cls,
        seeds: Sequence[int],
        sweep: Mapping[str, tuple[float, ...]],
        *,
        devices: Sequence[Any] | None = None,
        has_convolutions: bool = False,
    ) -> "Runs":
        """Combine every value of every swept field with every seed.

        Args:
            seeds: the seeds.
            sweep: field of the config → values.
            devices: all of them if not given.
            has_convolutions: whether the model convolves.
        """
        *values, seeds = zip(*itertools.product(*sweep.values(), seeds), strict=True)
        mesh = sharding.make_mesh(len(seeds), devices=devices)
        in_turn = policy.computes_runs_in_turn(list(mesh.devices.flat))
        if has_convolutions and mesh.shape[sharding.DATA_AXIS] > 1:
            # Convolutions of several runs at once are grouped ones, which XLA does not
            # divide among the devices of a run: each would compute the whole batch.
            mesh, in_turn = sharding.make_mesh(devices=devices), len(seeds) > 1
        return cls(tuple(seeds), dict(zip(sweep, values, strict=True)), mesh, in_turn)

    def __len__(self) -> int:
        return len(self.seeds)

    @property
    def devices(self) -> list[Any]:
        """The devices of the mesh."""
        return list(self.mesh.devices.flat)

    @property
    def names(self) -> list[str]:
        """What distinguishes each run: "learning_rate 0.001, seed 3"."""
        parts = [
            [f"{field.rpartition('.')[2]} {value:g}" for value in values]
            for field, values in self.swept.items()
        ]
        if not parts or len(set(self.seeds)) > 1:
            parts.append([f"seed {seed}" for seed in self.seeds])
        return [", ".join(of_run) for of_run in zip(*parts, strict=True)]

    def stack(self, values: Any) -> np.ndarray:
        """Turn a value for each run into an array (R,), a scalar of a single run."""
        return np.asarray(values) if len(self) > 1 else np.asarray(values[0])

    def swept_values(self) -> dict[str, np.ndarray]:
        """Map each swept field to its values, float32."""
        return {
            field: self.stack(values).astype(np.float32)
            for field, values in self.swept.items()
        }

    @functools.cached_property
    def keys(self) -> dict[str, jax.Array]:
        """Each run's keys: "init", "order" of the examples, and "steps"."""

        everywhere = sharding.replicated(self.mesh)
        make_keys = jax.jit(self.map(_make_keys, (0,)), out_shardings=everywhere)
        return make_keys(self.stack(self.seeds).astype(np.uint32))

    def abstract_keys(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Describe `keys`, of devices that may not be here."""
        seeds = self.stack(self.seeds).astype(np.uint32)
        keys = jax.eval_shape(self.map(_make_keys, (0,)), seeds)
        return sharding.abstract(keys, sharding.replicated(self.mesh))

    def map(self, function: Callable[..., Any], in_axes: Sequence[int | None]) -> Any:
        """Turn a function of one run into one of all runs.

        Args:
            function: of arrays of one run.
            in_axes: for each argument 0, if its arrays lead with the run axis, or None,
                if all runs share it.
        """
        if len(self) == 1:
            return function
        if not self.in_turn:
            return jax.vmap(function, in_axes, spmd_axis_name=sharding.RUN_AXIS)

        def map_in_turn(*args: Any) -> Any:
            def call(own: list[Any]) -> Any:
                rest = iter(own)
                pairs = zip(args, in_axes, strict=True)
                return function(
                    *(x if axis is None else next(rest) for x, axis in pairs)
                )

            own = [x for x, axis in zip(args, in_axes, strict=True) if axis == 0]
            return jax.lax.map(call, own)

        return map_in_turn

    def add_axis(self, tree: Any) -> Any:
        """Make arrays lead with the run axis, also of a single run."""
        return tree if len(self) > 1 else jax.tree.map(lambda x: x[None], tree)

    def select(self, tree: Any, run: int) -> Any:
        """Take one run's arrays."""
        return tree if len(self) == 1 else jax.tree.map(lambda x: x[run], tree)


def _make_keys(seed: jax.Array) -> dict[str, jax.Array]:
    """Make a run's keys of its seed."""
    key = jax.random.key(seed, impl=KEY_IMPL)
    streams = ("init", "order", "steps")
    return {name: jax.random.fold_in(key, i) for i, name in enumerate(streams)}


def make_runs(
    config: Config,
    model: nn.Module | None = None,
    *,
    devices: Sequence[Any] | None = None,
) -> Runs:
    """List the runs that the config asks for; see `Runs.combine`.

    Args:
        config: names seeds and sweeps.
        model: that is trained; with a single device it does not matter.
        devices: all of them if not given.
    """
    convolves = model is not None and policy.has_convolutions(model)
    seeds = range(config.seed, config.seed + config.num_seeds)
    return Runs.combine(
        seeds, config.sweep, devices=devices, has_convolutions=convolves
    )
