"""The trainer: `train_and_evaluate(config, workdir)` is its one public function."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train_jax.run.experiment import train_and_evaluate as train_and_evaluate

__all__ = ["train_and_evaluate"]


def __getattr__(name: str) -> Any:
    """Import the function when it is first used: JAX, Orbax and TFDS take seconds."""
    if name != "train_and_evaluate":
        raise AttributeError(f"module 'train_jax' has no attribute {name!r}")
    from train_jax.run.experiment import train_and_evaluate

    return train_and_evaluate
