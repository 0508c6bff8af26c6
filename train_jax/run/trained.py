"""A run that was trained before: its model and its variables."""

import dataclasses
import pathlib
from typing import Any

import flax.linen as nn
import jax

from train_jax import tasks
from train_jax.config.config import Config, resolve
from train_jax.data import ImageSplit, SequenceSplit
from train_jax.output import checkpoint
from train_jax.output import workdir as wd
from train_jax.run.experiment import load, make_init, make_model
from train_jax.run.runs import Runs
from train_jax.tasks import Task


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """What a run has learnt; all of it from one of its checkpoints.

    Attributes:
        config: every field.
        task: what the model is to do with an example.
        model: the module.
        variables: those to evaluate with.
        step: number of training steps behind them.
    """

    config: Config
    task: Task
    model: nn.Module
    variables: Any
    step: int

    def load_test(self) -> ImageSplit | SequenceSplit:
        """Load the split that the model is to be tested on."""
        return load(self.config, self.config.dataset.test_split)[0]


def load_model(
    workdir: pathlib.Path, *, run: int = 0, which: str = "last"
) -> TrainedRun:
    """Load a checkpoint of a run.

    Args:
        workdir: the run's folder; of it, only `checkpoints/` is used.
        run: which one, from 0, if several were trained in one program.
        which: "last", "best" (by validation) or the step of one.

    Raises:
        ValueError: if the folder holds no such checkpoint that is complete, or not so
            many runs.
    """
    directory = workdir / wd.CHECKPOINTS
    step = checkpoint.find(directory, which)
    if step is None:
        raise ValueError(f"--workdir {str(workdir)!r} holds no checkpoint")
    try:
        about = checkpoint.read_metadata(directory, step)
    except OSError as error:
        raise ValueError(f"checkpoint {step} cannot be read: {error}") from error
    fields = about["config"]
    if "model.attention_implementation" in fields:
        # Trained on a GPU, perhaps; looked at on any device, with its weights.
        fields["model.attention_implementation"] = "own"
    config, task = resolve(fields), tasks.from_json(about["task"])
    runs = Runs.of(config)
    if not 0 <= run < len(runs):
        raise ValueError(f"--run must be in [0, {len(runs) - 1}], got {run}")
    model = make_model(config, task)
    keys = jax.eval_shape(runs.vmap(jax.random.key), runs.stack(range(len(runs))))
    init = runs.vmap(make_init(config, model, task))
    template = jax.eval_shape(init, keys, runs.swept_values())
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    layout = jax.tree.map(lambda _: here, template)
    state = checkpoint.restore(directory, step, template, layout)
    variables = runs.take(state.eval_variables, run)
    return TrainedRun(config, task, model, variables, step)
