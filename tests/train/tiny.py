"""A run small enough for a test: 8×8 digits, a ViT of one block."""

import dataclasses
import pathlib
from typing import Any

from resnet_jax import ResNet
from train_jax import experiment
from train_jax.config import Config, resolve

TINY = {
    "model.name": "vit",
    "model.patch_size": 4,
    "model.width": 16,
    "model.depth": 1,
    "model.num_heads": 2,
    "dataset.name": "digits",
    "dataset.train_split": "train[:320]",
    "dataset.val_split": "train[320:420]",
    "dataset.test_split": "test[:90]",
    "batch_size": 64,
    "eval_batch_size": 48,
    "num_epochs": 4,
    "optimizer.learning_rate": 3e-3,
    "optimizer.warmup_epochs": 0.0,
}
RESNET = {"model.name": "resnet18", "model.width": 8}
# In place of the 18 layers, whose compilation would be most of the tests' time.
SMALL_RESNET = ResNet(10, stage_sizes=(1, 1), width=8)


def tiny_config(changes: dict[str, Any] | None = None) -> Config:
    """The tiny config with some fields changed; a resnet18 drops the ViT's fields."""
    changes = changes or {}
    base = TINY
    if changes.get("model.name", "vit") != "vit":
        base = {k: v for k, v in TINY.items() if not k.startswith("model.")}
    return resolve(base | changes)


def set_up(workdir: pathlib.Path, changes: dict[str, Any] | None = None):
    """The tiny experiment."""
    ready = experiment.set_up(tiny_config(changes), workdir)
    if ready.config.model.name == "resnet18":
        ready = dataclasses.replace(ready, model=SMALL_RESNET)
    return ready
