"""A run small enough for a test: 8×8 digits, a ViT of one block."""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from resnet_jax import ResNet
from train_jax.config.config import Config, resolve
from train_jax.run import experiment
from train_jax.run.epoch import EpochRunner

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


def set_up(workdir: pathlib.Path, changes: dict[str, Any] | None = None, **how: bool):
    """The tiny experiment."""
    ready = experiment.set_up(tiny_config(changes), workdir, **how)
    if ready.config.model.name == "resnet18":
        ready = dataclasses.replace(ready, model=SMALL_RESNET)
    return ready


def set_up_noise(workdir, changes):
    """An experiment on noise.

    Many pixels of a digit are alike: where they lie on the kink of a ReLU, the last bit
    of a sum turns all of them over at once.
    """
    ready = set_up(workdir, {"optimizer.name": "sgd"} | changes)
    noise = np.random.default_rng(0).integers(0, 256, ready.train.image_BHWC.shape)
    train = dataclasses.replace(ready.train, image_BHWC=noise.astype(np.uint8))
    return dataclasses.replace(ready, train=train)


def losses_of_steps(ready, num_steps=20):
    """Train, and return the loss of each step, and the last state."""
    state = ready.first_state()
    runner = EpochRunner(ready, state)
    losses = []
    for step in range(num_steps):
        before = state.epoch_sums["loss"] if step % ready.steps_per_epoch else 0.0
        before = np.asarray(before)
        order = runner.order(step // ready.steps_per_epoch)
        state = runner.take_steps(1, state, order)
        losses.append(np.asarray(state.epoch_sums["loss"]) - before)
    assert state.steps_done == num_steps
    return np.array(losses), state
