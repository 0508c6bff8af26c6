"""Choose float32 or bfloat16 where the config says dtype 'auto'."""

import dataclasses

from train_jax.config.fields import Config
from train_jax.config.models import MODELS
from train_jax.devices import policy, processes
from train_jax.output import workdir as wd
from train_jax.storage.store import Path

_CHOICES = ("float32", "bfloat16")


def choose_dtype(config: Config, workdir: Path, *, overwrite: bool) -> Config:
    """Replace the dtype "auto" by the fastest one, alike in all processes.

    A run in the folder that is to be continued keeps its own.
    """
    if config.dtype != "auto":
        return config
    recorded = None if overwrite else wd.read_field(workdir, "dtype")
    fastest = policy.fastest_dtype(MODELS[config.model.name])
    chosen = recorded if recorded in _CHOICES else fastest
    number = processes.broadcast_from_main(_CHOICES.index(chosen))
    return dataclasses.replace(config, dtype=_CHOICES[number])
