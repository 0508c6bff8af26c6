"""A run small enough for a test: 8×8 digits, a ViT of one block."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
import numpy as np
import pytest

from resnet_jax import ResNet
from train_jax.config.config import resolve, to_json
from train_jax.config.fields import Config
from train_jax.learning.state import TrainState
from train_jax.output import checkpoint
from train_jax.output import workdir as wd
from train_jax.run import experiment, setup, trainer_setup
from train_jax.run.evaluator import Evaluator
from train_jax.run.setup import Parts, make_parts
from train_jax.run.splits import load_dataset
from train_jax.run.steps import Steps

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


def train_tiny(
    workdir: pathlib.Path,
    changes: dict[str, Any] | None = None,
    *,
    has_plots: bool = False,
    **how: Any,
) -> dict[str, Any]:
    """Train and evaluate the tiny model; returns the summary.

    Plots are drawn, and the table of layers is printed, only if plots are asked for:
    they are a third of the time.
    """
    with contextlib.ExitStack() as stack:
        if not has_plots:
            stack.enter_context(mock.patch.object(experiment, "_plot"))
            stack.enter_context(mock.patch.object(experiment, "print_layers"))
        return experiment.train_and_evaluate(tiny_config(changes), workdir, **how)


def make_tiny(
    changes: dict[str, Any] | None = None,
    *,
    has_noise: bool = False,
    model: nn.Module | None = None,
    devices: list[Any] | None = None,
) -> Parts:
    """The parts of the tiny run.

    Args:
        changes: of the config.
        has_noise: whether the training images are noise. Many pixels of a digit are
            alike: where they lie on the kink of a ReLU, the last bit of a sum turns
            all of them over at once.
        model: in place of the config's.
        devices: all of them if not given.
    """
    changes = ({"optimizer.name": "sgd"} if has_noise else {}) | (changes or {})
    config = tiny_config(changes)
    train, val, test = load_dataset(config.dataset)
    if has_noise:
        noise = np.random.default_rng(0).integers(0, 256, train.image_BHWC.shape)
        train = dataclasses.replace(train, image_BHWC=noise.astype(np.uint8))
    if model is None and config.model.name == "resnet18":
        model = SMALL_RESNET
    return make_parts(config, train, val, test, model=model, devices=devices)


def last_state(
    workdir: pathlib.Path, changes: dict[str, Any] | None = None
) -> TrainState:
    """The state in the newest checkpoint of a run."""
    directory = workdir / wd.CHECKPOINTS
    step = checkpoint.find(directory, "last")
    assert step is not None
    return checkpoint.restore(directory, step, make_tiny(changes).abstract_state)


def losses_of_steps(parts: Parts, num_steps: int = 20) -> tuple[np.ndarray, TrainState]:
    """Train, and return the loss of each step, and the last state."""
    state, trainer = parts.init_state(), parts.trainer
    trainer.compile(state)
    losses = []
    for step in range(num_steps):
        is_first = step % trainer.steps_per_epoch == 0
        before = 0.0 if is_first else jax.device_get(state.epoch_sums["loss"])
        state = trainer.advance(state, step + 1)
        losses.append(jax.device_get(state.epoch_sums["loss"]) - before)
    assert state.steps_done == num_steps
    return np.array(losses), state


@dataclasses.dataclass(frozen=True)
class CompiledOnce(Steps):
    """Steps that take over the program of equal ones.

    Attributes:
        key: describes all that the steps are made of.
        programs: those that are compiled already, by key.
    """

    key: str
    programs: dict[str, Callable[..., TrainState]]

    def compile(self, state: TrainState) -> Callable[..., TrainState]:
        described = jax.tree.map(
            lambda x: (x.shape, x.dtype, x.sharding), (state, self.inputs)
        )
        key = f"{self.key} {described}"
        if key not in self.programs:
            self.programs[key] = super().compile(state)
        return self.programs[key]


def _compiled_fields(config: Config) -> dict[str, Any]:
    """The fields of a config that the program of its steps may depend on."""
    fields = to_json(config)
    others = {"init_from", *(name for name in fields if name.startswith("checkpoint."))}
    optimizer = config.optimizer
    # The program of a constant learning rate is the same for any length.
    has_end = optimizer.schedule != "constant" or optimizer.cooldown_epochs
    if not (has_end or config.groups):
        others |= {"num_epochs", "num_steps"}
    return {name: value for name, value in fields.items() if name not in others}


@pytest.fixture(scope="module", autouse=True)
def compile_once() -> Iterator[None]:
    """Compile the steps, and the evaluation, of equal configs once.

    Tracing and compiling is most of what a tiny run takes. It holds for the modules
    that import this. Their tests may replace the model, which is in the keys, but
    nothing else that is traced.
    """
    make_steps, make_evaluator = trainer_setup.make_steps, setup.make_evaluator
    programs: dict[str, Callable[..., TrainState]] = {}
    evaluators: dict[str, Evaluator] = {}

    def make_shared_steps(config, model, task, train, runs):
        devices = [device.id for device in runs.devices]
        key = repr((_compiled_fields(config), model, task, runs, devices))
        steps = make_steps(config, model, task, train, runs)
        return CompiledOnce(**vars(steps), key=key, programs=programs)

    def make_shared_evaluator(model, task, runs, **how):
        devices = [device.id for device in runs.devices]
        key = repr((model, task, runs, devices, how))
        if key not in evaluators:
            evaluators[key] = make_evaluator(model, task, runs, **how)
        return evaluators[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_setup, "make_steps", make_shared_steps)
        patch.setattr(setup, "make_evaluator", make_shared_evaluator)
        yield
