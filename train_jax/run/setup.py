"""Turn a config into the parts of a run: data, task, model, compiled functions.

Functions that build a part read the config; the parts take explicit arguments.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn

from train_jax import data
from train_jax.config.fields import Config
from train_jax.data import Split
from train_jax.devices import policy
from train_jax.learning.augment import TestAugmentation
from train_jax.learning.state import TrainState
from train_jax.run.evaluator import Evaluation, Evaluator
from train_jax.run.initial_state import make_initial_state
from train_jax.run.model import make_model, whiten
from train_jax.run.pretrained import fit_pretrained, load_pretrained
from train_jax.run.runs import Runs, make_runs
from train_jax.run.splits import SPLIT_FIELDS, load_dataset
from train_jax.run.task import make_task
from train_jax.run.trainer import Trainer
from train_jax.run.trainer_setup import check_batch_size, make_trainer
from train_jax.tasks import Classification, Task, Translation
from weight_files import Pretrained


@dataclasses.dataclass(frozen=True)
class Parts:
    """The parts of a run.

    Attributes:
        train: the examples to learn from.
        val: the examples to validate on, if there are any.
        test: the examples to test on, once, at the end.
        task: how examples become batches, and which outputs are right.
        model: the module.
        runs: the runs that are trained in one program, and their devices.
        abstract_state: shapes, dtypes and shardings of the training state.
        init_state: draws the state to start from.
        trainer: takes the training steps.
        evaluator: evaluates models on a split.
        view_evaluator: evaluates them on several views of each example, if the config
            asks for that.
    """

    train: Split
    val: Split | None
    test: Split
    task: Task
    model: nn.Module
    runs: Runs
    abstract_state: TrainState
    init_state: Callable[[], TrainState]
    trainer: Trainer
    evaluator: Evaluator
    view_evaluator: Evaluator | None

    @property
    def splits(self) -> tuple[Split, Split | None, Split]:
        """The training, validation and test split."""
        return self.train, self.val, self.test

    def validate(self, variables: Any) -> Evaluation | None:
        """Evaluate models on the validation split, if there is one."""
        return None if self.val is None else self.evaluator(variables, self.val)


def set_up(config: Config, *, resumes: bool = False) -> Parts:
    """Load the data, build the model, and check that all of it fits together.

    What can be known from the config alone is checked before anything is read or
    downloaded.

    Args:
        config: what to set up.
        resumes: whether a checkpoint is there, so that `init_from` isn't needed.

    Raises:
        ValueError: naming the field, its value and what is allowed.
    """
    _check_without_data(config)
    pretrained = None
    if config.init_from is not None and not resumes:
        num_heads = config.model.arguments.get("num_heads")
        pretrained = load_pretrained(config.init_from, num_heads)
    crops = config.augment.crop_area is not None
    splits = load_dataset(config.dataset, crops=crops)
    return make_parts(config, *splits, pretrained=pretrained)


def make_parts(
    config: Config,
    train: Split,
    val: Split | None,
    test: Split,
    *,
    pretrained: Pretrained | None = None,
    model: nn.Module | None = None,
    devices: Sequence[Any] | None = None,
) -> Parts:
    """Make the parts of a run on given examples.

    Args:
        config: names everything else.
        train: the examples to learn from.
        val: the examples to validate on, if there are any.
        test: the examples to test on.
        pretrained: the weights to start from, in place of drawn ones.
        model: in place of the config's.
        devices: all of them if not given.

    Raises:
        ValueError: naming the field, its value and what is allowed.
    """
    task = make_task(config.dataset, config.augment, train)
    if model is None:
        model = make_model(config, task, devices=devices)
    runs = make_runs(config, model, devices=devices)
    check_streaming(config, runs, is_streamed=train.is_streamed)
    model = whiten(model, task, train)
    fitted = None if pretrained is None else fit_pretrained(pretrained, model, task)
    abstract_state, init_state = make_initial_state(
        config, model, task, runs, pretrained=fitted
    )
    # A batch larger than the longest split would be padding alone.
    batch_size = min(config.eval_batch_size, max(len(val or ()), len(test)))
    evaluate = functools.partial(
        make_evaluator, model, task, runs, batch_size=batch_size
    )
    views = config.test_augmentation
    return Parts(
        train=train,
        val=val,
        test=test,
        task=task,
        model=model,
        runs=runs,
        abstract_state=abstract_state,
        init_state=init_state,
        trainer=make_trainer(config, model, task, train, runs),
        evaluator=evaluate(),
        view_evaluator=evaluate(augmentation=views) if views else None,
    )


def _check_without_data(config: Config) -> None:
    """Raise ValueError for what cannot work, whatever the data are."""
    for name in SPLIT_FIELDS:
        if (split := getattr(config.dataset, name)) is not None:
            data.split_name(split)
    if data.is_sequences(config.dataset.name):
        if config.test_augmentation is not None:
            raise ValueError(
                "config.test_augmentation must be None for dataset "
                f"{config.dataset.name!r}, which has no images, got "
                f"{config.test_augmentation!r}"
            )
        task = Translation(1, 1, 1)
    else:
        side = config.model.arguments.get("patch_size", 32)
        task = Classification((side, side, 1), ("any",), (0.5,), (0.5,))
    model = make_model(config, task)
    runs = make_runs(config, model)
    check_batch_size(config, runs)
    if config.groups or config.freeze or config.optimizer.layer_decay is not None:
        make_initial_state(config, model, task, runs)  # they must fit the parameters
    is_streamed = config.dataset.streaming
    if data.is_in_memory(config.dataset.name):
        is_streamed = False
    if is_streamed != "auto":
        check_streaming(config, runs, is_streamed=is_streamed)


def check_streaming(config: Config, runs: Runs, *, is_streamed: bool) -> None:
    """Raise ValueError for what cannot be streamed, and what has to be."""
    if is_streamed and len(runs) > 1:
        raise ValueError(
            f"config.dataset.streaming must be False for {len(runs)} runs in one "
            "program, as each has its own order of the examples, got "
            f"{config.dataset.streaming!r}"
        )
    if config.augment.crop_area is not None and not is_streamed:
        raise ValueError(
            "config.augment.crop_area needs images that are streamed, "
            f"config.dataset.streaming is {config.dataset.streaming!r} and "
            f"config.dataset.name {config.dataset.name!r}"
        )


def make_evaluator(
    model: nn.Module,
    task: Task,
    runs: Runs,
    *,
    batch_size: int,
    augmentation: TestAugmentation | None = None,
) -> Evaluator:
    """Make the evaluator of all runs."""
    eval_step = task.make_eval_step(model, augmentation)
    eval_all = runs.map(lambda variables, it: eval_step(variables, *it), (0, None))
    return Evaluator(
        lambda variables, examples: runs.add_axis(eval_all(variables, examples)),
        batch_size=batch_size,
        mesh=runs.mesh,
        jit=policy.jit_of_model(model, platform=runs.devices[0].platform),
    )
