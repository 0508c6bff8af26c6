"""Independent runs in one program: they differ in the seed or in a swept field."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from train_jax.config.config import Config, flatten
from train_jax.devices.sharding import RUN_AXIS


@dataclasses.dataclass(frozen=True)
class Runs:
    """The runs that a config asks for, R of them.

    With more than one, every array of the training state and of the metrics leads with
    the run axis R, and a step of all runs is the vmapped step of one. A single run
    has no such axis.

    Attributes:
        seeds: the seed of each run.
        swept: field of the config → its value in each run.
    """

    seeds: tuple[int, ...]
    swept: dict[str, tuple[float, ...]]

    @classmethod
    def of(cls, config: Config) -> "Runs":
        """Combine every value of every swept field with every seed."""
        fields = flatten(config.sweep)
        seeds = range(config.seed, config.seed + config.num_seeds)
        *values, seeds = zip(*itertools.product(*fields.values(), seeds), strict=True)
        return cls(tuple(seeds), dict(zip(fields, values, strict=True)))

    def __len__(self) -> int:
        return len(self.seeds)

    @property
    def names(self) -> list[str]:
        """What sets each run apart from the others."""
        parts = [
            [f"{field.rpartition('.')[2]} {value:g}" for value in values]
            for field, values in self.swept.items()
        ]
        if not parts or len(set(self.seeds)) > 1:
            parts.append([f"seed {seed}" for seed in self.seeds])
        return [", ".join(of_run) for of_run in zip(*parts, strict=True)]

    def stack(self, values: Any) -> np.ndarray:
        """Turn a value of each run into an array as it is laid out here."""
        return np.asarray(values) if len(self) > 1 else np.asarray(values[0])

    def swept_values(self) -> dict[str, np.ndarray]:
        """Map each swept field to its value in the runs, float32."""
        return {
            field: self.stack(values).astype(np.float32)
            for field, values in self.swept.items()
        }

    def vmap(self, function: Callable[..., Any], in_axes: Any = 0) -> Any:
        """Turn a function of one run into one of all runs.

        Args:
            function: of arrays of one run.
            in_axes: as in `jax.vmap`; 0 for what each run has its own of, None for what
                they share.
        """
        if len(self) == 1:
            return function
        return jax.vmap(function, in_axes, spmd_axis_name=RUN_AXIS)

    def rows(self, tree: Any) -> Any:
        """Make arrays lead with the run axis, also that of a single run."""
        return tree if len(self) > 1 else jax.tree.map(lambda x: x[None], tree)

    def take(self, tree: Any, run: int) -> Any:
        """Take one run's part of arrays that are laid out as here."""
        return jax.tree.map(lambda x: x[run], self.rows(tree))
