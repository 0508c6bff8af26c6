"""Saving and restoring the training state, with Orbax."""

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from train_jax.state import TrainState


class Checkpoints:
    """The checkpoints of one run, each in a folder named by its step.

    A save goes on in the background while training continues. A checkpoint appears
    under its name only when it is complete, so that a run killed while it saves
    leaves the previous one as the latest.
    """

    def __init__(self, directory: pathlib.Path, *, keep: int):
        """Open the folder, creating it if need be.

        Args:
            directory: where the checkpoints lie.
            keep: how many of the newest are kept.
        """
        options = ocp.CheckpointManagerOptions(max_to_keep=keep)
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint; None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState) -> None:
        """Start to save the state as that of `step`; returns before it is written."""
        self._manager.save(step, args=ocp.args.StandardSave(state))

    def restore(self, step: int, template: TrainState, sharding: Any) -> TrainState:
        """Read a state back.

        Args:
            step: of a complete checkpoint.
            template: a state, concrete or abstract, of the same structure.
            sharding: how the arrays are to lie on the devices.
        """
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            template,
        )
        restored: Any = self._manager.restore(
            step, args=ocp.args.StandardRestore(abstract)
        )
        return restored

    def close(self) -> None:
        """Wait for the saves that are under way, and let go of the folder."""
        self._manager.close()
