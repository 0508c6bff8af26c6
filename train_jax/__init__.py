"""The trainer: `train_and_evaluate` trains, `load_model` loads a trained model."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train_jax.run.experiment import train_and_evaluate as train_and_evaluate
    from train_jax.run.failures import Diverged as Diverged
    from train_jax.run.failures import Failed as Failed
    from train_jax.run.failures import Stopped as Stopped
    from train_jax.run.trained_model import load_model as load_model

_MODULES = {
    "Diverged": "train_jax.run.failures",
    "Failed": "train_jax.run.failures",
    "Stopped": "train_jax.run.failures",
    "load_model": "train_jax.run.trained_model",
    "train_and_evaluate": "train_jax.run.experiment",
}
__all__ = ["Diverged", "Failed", "Stopped", "load_model", "train_and_evaluate"]


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: JAX, Orbax and TFDS take seconds."""
    if name not in _MODULES:
        raise AttributeError(f"module 'train_jax' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_MODULES[name]), name)
    except ModuleNotFoundError as error:
        error.msg += ': pip install "vit-resnet-jax[train]"'
        raise
