"""What the recipes for CIFAR need of a whole run: groups, no validation, views."""

import contextlib
import io
import itertools
import json

import jax
import numpy as np
import pytest

from tests.train.tiny import (
    compile_once,  # noqa: F401 (a fixture)
    last_state,
    make_tiny,
    tiny_config,
    train_tiny,
)
from train_jax.config.config import resolve, to_json
from train_jax.run.failures import Stopped
from train_jax.run.optimizer import check_groups, param_groups
from train_jax.run.setup import set_up
from train_jax.run.splits import load_dataset

GROUPS = {
    "optimizer.name": "muon",
    "groups.head.params": "head/",
    "groups.head.name": "sgd",
    "groups.head.num_epochs": 1,
    "optimizer.keep_norm": True,
    "groups.position.params": "pos_embedding",
    "groups.frozen.params": "block_0/mlp/hidden",
    "groups.frozen.learning_rate": 0,
    "groups.position.learning_rate": 0,
}
ALL = {
    **GROUPS,
    "dataset.val_split": None,
    "augment.crop_padding": 1,
    "augment.crop_fill": "reflection",
    "augment.flip": "alternating",
    "augment.trivial_augment": True,
    "augment.rotation": 10.0,
    "augment.contrast": 0.4,
    "model.num_registers": 1,
    "augment.erasing_rate": 0.5,
    "model.stochastic_depth_rate": 0.5,
    "model.layer_scale": 0.1,
    "test_augmentation": "flip_shift",
    "num_epochs": 2,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an uninterrupted run, its summary, and what it has printed."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        summary = train_tiny(workdir, ALL, has_plots=True)
    return workdir, summary, printed.getvalue()


def test_a_run_without_validation_reports_the_rest(whole):
    workdir, summary, out = whole
    assert "val_accuracy" not in summary
    assert 0 <= summary["test_accuracy_augmented"] <= 1
    line = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    assert "val_loss" not in line
    assert (workdir / "plots/curves.png").exists()
    assert "0 to validate" in out and "val loss" not in out
    assert "total" in out  # the table of layers


def test_it_resumes_exactly(whole, tmp_path):
    stops = iter([False, False, True])
    with pytest.raises(Stopped):
        train_tiny(tmp_path, ALL, should_stop=lambda: next(stops, True))
    train_tiny(tmp_path, ALL)
    expected, resumed = (last_state(folder, ALL) for folder in (whole[0], tmp_path))
    jax.tree.map(np.testing.assert_array_equal, expected, resumed)


def test_groups_follow_their_own_schedules():
    parts = make_tiny(GROUPS | {"num_epochs": 2})
    state = parts.init_state()
    parts.trainer.compile(state)
    steps_per_epoch = parts.trainer.steps_per_epoch
    params = []
    for step in (0, steps_per_epoch, 2 * steps_per_epoch):
        state = parts.trainer.advance(state, step)
        params.append(jax.device_get(state.params))
    for name, changes in (
        ("embedding", [True, True]),
        ("head", [True, False]),  # its schedule ends with the first epoch
        ("pos_embedding", [False, False]),
        ("encoder", [False, False]),
    ):
        if name == "encoder":  # a kernel, whose norm Muon would keep
            params = [tree["encoder"]["block_0"]["mlp"]["hidden"] for tree in params]
        kernels = [jax.tree.leaves(tree.get(name, tree))[-1] for tree in params]
        pairs = itertools.pairwise(kernels)
        assert [not np.array_equal(a, b) for a, b in pairs] == changes, name


def test_what_a_group_leaves_out_is_as_in_the_optimizer():
    given = GROUPS | {"optimizer.weight_decay": 0.25, "optimizer.momentum": 0.5}
    config = resolve({**given, "model.name": "resnet18", "groups.same.params": "a"})
    head, same = config.groups["head"], config.groups["same"]
    assert (head.weight_decay, same.weight_decay) == (0.25, 0.25)
    assert same.name == "muon" and same.arguments["momentum"] == 0.5
    # The arguments of another optimiser have their own defaults.
    assert head.arguments["momentum"] == 0.9
    assert resolve(to_json(config)) == config


def test_a_sweep_does_not_reach_what_a_group_leaves_out():
    swept = GROUPS | {"sweep.optimizer.weight_decay": (0.1, 0.2)}
    with pytest.raises(ValueError, match=r"config\.groups\.head\.weight_decay must be"):
        tiny_config(swept)
    config = tiny_config(swept | {"groups.head.weight_decay": 0.0})
    assert resolve(to_json(config)) == config


def test_a_group_may_be_called_freeze():
    params = {"stem": {"kernel": 0}, "head": {"kernel": 0}}
    fields = {"freeze": "backbone", "groups.freeze.params": "head/"}
    check_groups(param_groups(tiny_config(fields)), params)
    fields = {"freeze": "backbone", "groups.stem.params": "^stem/"}
    with pytest.raises(ValueError, match=r"'stem/kernel' as config\.freeze does"):
        check_groups(param_groups(tiny_config(fields)), params)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"groups.all.params": "kernel"},
            r"config\.groups\.\w+\.params must fit no parameter of another group",
        ),
        (
            {"groups.head.momentun": 0.1},
            r"config\.groups\.head\.momentun is unknown; did you mean "
            r"config\.groups\.head\.momentum\?",
        ),
        (
            {"groups.head.warmup_epochs": 2},
            r"config\.groups\.head\.warmup_epochs must be shorter than the training, "
            r"got 2 of 1 epochs",
        ),
        (
            {"groups.head.schedule": "steps", "groups.head.warmup_epochs": 0.6},
            r"config\.groups\.head\.milestones must come after the warm-up of 3 steps, "
            r"got 2 steps",
        ),
        (
            {"dataset.val_split": None, "test_checkpoint": "best"},
            r"config\.test_checkpoint must be 'last' where",
        ),
        (
            {"dataset.name": "reverse", "test_augmentation": "flip"},
            r"config\.test_augmentation must be None for dataset 'reverse'",
        ),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        set_up(tiny_config(GROUPS | changes))


def test_splits_without_validation_do_not_overlap(capsys):
    config = resolve({"model.name": "resnet18", "dataset.val_split": None})
    train, val, test = load_dataset(config.dataset)
    assert val is None and len(train) and len(test)
    assert not capsys.readouterr().err
