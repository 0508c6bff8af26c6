"""From a config to a run that is ready to start, with everything checked."""

import dataclasses
import functools
import itertools
import math
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from jax.sharding import Mesh

from train_jax import data
from train_jax.config.config import FIELDS, MOST_STEPS, Config
from train_jax.config.models import create_model, init_variables
from train_jax.data import ImageSplit, SequenceSplit
from train_jax.devices import compiler, processes, sharding
from train_jax.learning import optim
from train_jax.learning.augment import channel_statistics
from train_jax.learning.state import TrainState
from train_jax.output import workdir as wd
from train_jax.run.runs import Runs
from train_jax.tasks import Classification, Task, Translation

SPLITS = ("train_split", "val_split", "test_split")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A run, or several in one program, ready to start.

    Attributes:
        config: every field.
        workdir: the run's folder.
        train: the examples to learn from.
        val: the examples to watch.
        test: the examples to judge by, once, at the end.
        task: what the model is to do with an example.
        model: the module.
        runs: what sets several runs apart.
        mesh: the devices.
        steps_per_epoch: number of whole batches in the training split.
        total_steps: length of the training.
    """

    config: Config
    workdir: pathlib.Path
    train: ImageSplit | SequenceSplit
    val: ImageSplit | SequenceSplit
    test: ImageSplit | SequenceSplit
    task: Task
    model: nn.Module
    runs: Runs
    mesh: Mesh
    steps_per_epoch: int
    total_steps: int

    @property
    def num_epochs(self) -> int:
        """Number of epochs; the last one may be cut short."""
        return math.ceil(self.total_steps / self.steps_per_epoch)

    @property
    def examples_per_step(self) -> int:
        """Number of examples that a step of all runs takes."""
        return self.config.batch_size * len(self.runs)

    def key(self, stream: str) -> jax.Array:
        """Each run's key of a stream of randomness: "init", "order" or "steps"."""
        return self._keys[stream]

    @functools.cached_property
    def _keys(self) -> dict[str, jax.Array]:
        def make_keys(seed: jax.Array) -> dict[str, jax.Array]:
            key, streams = jax.random.key(seed), ("init", "order", "steps")
            return {name: jax.random.fold_in(key, i) for i, name in enumerate(streams)}

        everywhere = sharding.replicated(self.mesh)
        seeds = self.runs.stack(self.runs.seeds).astype(np.uint32)
        return jax.jit(self.runs.vmap(make_keys), out_shardings=everywhere)(seeds)

    def optimizer(
        self, swept: Mapping[str, Any]
    ) -> tuple[optax.Schedule, optax.GradientTransformation]:
        """Make the schedule and the optimiser of a run with its swept values."""
        return make_optimizer(
            self.config, swept, self.steps_per_epoch, self.total_steps
        )

    def learning_rate(self, step: int) -> np.ndarray:
        """The learning rate of each of the R runs in a step."""
        values = self.runs.rows(self.runs.swept_values())
        swept = [
            {k: v[run] for k, v in values.items()} for run in range(len(self.runs))
        ]
        return np.array([self.optimizer(each)[0](step) for each in swept], float)

    def state_sharding(self, state: Any) -> Any:
        """How the training state lies on the devices."""
        return sharding.state_sharding(
            self.mesh, state, num_runs=len(self.runs), fsdp=self.config.fsdp
        )

    def abstract_state(self) -> TrainState:
        """The structure of the training state, without values."""
        return jax.eval_shape(self._init, *self._init_arguments())

    def first_state(self) -> TrainState:
        """Draw the state that the runs start from."""
        layout = self.state_sharding(self.abstract_state())
        init = compiler.jit(self._init, out_shardings=layout)
        return init(*self._init_arguments())

    @property
    def _init(self) -> Callable[..., TrainState]:
        return self.runs.vmap(make_init(self.config, self.model, self.task))

    def _init_arguments(self) -> tuple[jax.Array, dict[str, np.ndarray]]:
        return self.key("init"), self.runs.swept_values()


def set_up(
    config: Config,
    workdir: pathlib.Path,
    *,
    overwrite: bool = False,
    extend: bool = False,
) -> Experiment:
    """Load the data, build the model, and check that all of it fits together.

    Nothing is written to the folder. What can be known from the config alone is said
    before anything is read or downloaded.

    Args:
        config: complete, from `load_config`.
        workdir: the run's folder.
        overwrite: whether a run that lies there may be deleted.
        extend: whether such a run may be trained longer than its schedule said.

    Raises:
        ValueError: naming what is wrong, what was given and what is allowed.
    """

    def check_folder() -> None:
        wd.check_free(workdir)
        wd.check(workdir, config, overwrite=overwrite, extend=extend)

    processes.call_on_main(check_folder)
    runs = Runs.of(config)
    mesh = sharding.make_mesh(len(runs))
    _check_without_data(config, num_devices=mesh.shape[sharding.DATA_AXIS])
    train, val, test = load_splits(config)
    if config.batch_size > len(train):
        raise ValueError(
            f"config.batch_size must be at most {len(train)}, the number of examples "
            f"in {config.dataset.train_split!r}, got {config.batch_size}"
        )
    steps_per_epoch = len(train) // config.batch_size
    total_steps = config.num_steps or config.num_epochs * steps_per_epoch
    if total_steps > MOST_STEPS:
        raise ValueError(
            f"config.num_epochs must be at most {MOST_STEPS // steps_per_epoch}, as "
            f"steps are counted in int32, got {config.num_epochs}"
        )
    make_optimizer(config, {}, steps_per_epoch, total_steps)
    task = make_task(config, train)
    return Experiment(
        config=config,
        workdir=workdir,
        train=train,
        val=val,
        test=test,
        task=task,
        model=make_model(config, task),
        runs=runs,
        mesh=mesh,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
    )


def _check_without_data(config: Config, *, num_devices: int) -> None:
    """Raise ValueError for what cannot work, whatever the data are."""
    for name in SPLITS:
        data.parse_split(config.dataset[name])
    size, parts = config.batch_size, config.accumulation_steps
    if size % (num_devices * parts):
        raise ValueError(
            f"config.batch_size must be divisible by {num_devices * parts} "
            f"({num_devices} devices × {parts} accumulation_steps), got {size}"
        )
    if data.is_sequences(config.dataset.name):
        make_model(config, Translation(1, 1, 1))
    else:
        side = config.model.get("patch_size", 32)
        make_model(config, Classification((side, side, 1), ("any",), (0.5,), (0.5,)))


def load_splits(config: Config) -> list[ImageSplit | SequenceSplit]:
    """Load the training, validation and test split; warn where they overlap."""
    cuts = [config.dataset[name] for name in SPLITS]
    wholes = [data.parse_split(cut)[0] for cut in cuts]
    train, val, test, *whole = load(config, *cuts, *wholes)
    if not config.dataset.allow_overlap and processes.is_main():
        size_of = dict(zip(wholes, map(len, whole), strict=True))
        for a, b in itertools.combinations(range(len(SPLITS)), 2):
            shared = data.count_shared(cuts[a], cuts[b], size_of)
            if shared:
                print(
                    f"warning: config.dataset.{SPLITS[a]} {cuts[a]!r} and "
                    f"config.dataset.{SPLITS[b]} {cuts[b]!r} share {shared:,} examples;"
                    " if that is meant, say so by config.dataset.allow_overlap=True",
                    file=sys.stderr,
                )
    return [train, val, test]


def load(config: Config, *splits: str) -> list[ImageSplit | SequenceSplit]:
    """Load splits of the config's dataset."""
    dataset = config.dataset
    load_splits = functools.partial(
        data.load_splits,
        dataset.name,
        *splits,
        data_dir=dataset.data_dir,
        manual_dir=dataset.manual_dir,
    )
    if jax.process_count() > 1:
        # One process prepares a set that is not there yet; the others read it then.
        processes.call_on_main(load_splits)
    return load_splits()


def make_optimizer(
    config: Config, swept: Mapping[str, Any], steps_per_epoch: int, total_steps: int
) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """Make the schedule and the optimiser from the config's section.

    Args:
        config: every field.
        swept: field → value, in place of the config's; may be traced.
        steps_per_epoch: number of steps in an epoch.
        total_steps: length of the training.

    Raises:
        ValueError: if the warm-up does not fit.
    """
    fields = {k: swept.get(f"optimizer.{k}", v) for k, v in config.optimizer.items()}
    warmup_steps = round(fields.pop("warmup_epochs") * steps_per_epoch)
    if warmup_steps >= total_steps:
        raise ValueError(
            "config.optimizer.warmup_epochs must be shorter than the training, got "
            f"{warmup_steps} of {total_steps} steps"
        )
    schedule = optim.make_schedule(
        fields.pop("schedule"),
        learning_rate=fields.pop("learning_rate"),
        total_steps=total_steps,
        warmup_steps=warmup_steps,
    )
    return schedule, optim.make_optimizer(fields.pop("name"), schedule, **fields)


def make_init(
    config: Config, model: nn.Module, task: Task
) -> Callable[[jax.Array, Mapping[str, Any]], TrainState]:
    """Make the function (key, swept values) → state that a run starts from."""
    # The structure of the optimiser's state does not depend on the schedule's length.
    length = {"steps_per_epoch": 0, "total_steps": 1}

    def init(key: jax.Array, swept: Mapping[str, Any]) -> TrainState:
        _, tx = make_optimizer(config, swept, **length)
        ema_decay = swept.get("ema_decay", config.ema_decay)
        variables = init_variables(model, key, task.inputs())
        return TrainState.create(variables, tx, ema=ema_decay is not None)

    return init


def make_task(config: Config, train: ImageSplit | SequenceSplit) -> Task:
    """Find out from the data what there is to do."""
    if isinstance(train, ImageSplit):
        image_shape = train.image_BHWC.shape[1:]
        mean, std = _statistics(config, image_shape[-1])
        side = min(image_shape[:2])
        if config.augment.crop_padding >= side:
            raise ValueError(
                f"config.augment.crop_padding must be less than {side}, the side of an "
                f"image, got {config.augment.crop_padding}"
            )
        return Classification(
            image_shape, train.class_names, mean, std, dict(config.augment)
        )
    for name, value in config.augment.items():
        default = FIELDS[f"augment.{name}"][0]
        if value != default:
            raise ValueError(
                f"config.augment.{name} must be {default!r} for dataset "
                f"{config.dataset.name!r}, which has no images, got {value!r}"
            )
    lengths = (train.source_BS.shape[1], train.target_BT.shape[1])
    return Translation(train.num_symbols, *lengths)


def _statistics(
    config: Config, num_channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation for the normalisation: the config's or the set's."""
    mean, std = channel_statistics(config.dataset.name, num_channels)
    mean = mean if config.dataset.mean is None else config.dataset.mean
    std = std if config.dataset.std is None else config.dataset.std
    for name, value in (("mean", mean), ("std", std)):
        if len(value) != num_channels:
            raise ValueError(
                f"config.dataset.{name} must have {num_channels} values, one for each "
                f"channel, got {value}"
            )
    return mean, std


def make_model(config: Config, task: Task) -> nn.Module:
    """Build the model and make sure that it takes the task's examples."""
    fields = dict(config.model)
    name = fields.pop("name")
    if name not in task.models:
        raise ValueError(
            f"config.model.name must be one of {', '.join(task.models)} for dataset "
            f"{config.dataset.name!r}, got {name!r}"
        )
    model = create_model(name, dtype=config.dtype, **task.model_fields, **fields)
    try:
        jax.eval_shape(
            functools.partial(init_variables, model, inputs=task.inputs()),
            jax.random.key(0),
        )
    except (ValueError, RuntimeError) as error:
        # JAX raises the latter where cuDNN's attention is not to be had.
        raise ValueError(f"config.model: {error}") from error
    return model
