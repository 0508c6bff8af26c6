"""One program on any number of devices: the same losses, however it is laid out."""

import functools
import types

import chex
import jax
import numpy as np
import pytest

from tests.train.tiny import (
    RESNET,
    losses_of_steps,
    make_tiny,
    tiny_config,
    train_tiny,
)
from train_jax.devices import memory, sharding
from train_jax.output import checkpoint
from train_jax.output import workdir as wd
from train_jax.run.model import make_model
from train_jax.run.runs import make_runs
from train_jax.run.splits import load_dataset
from train_jax.run.task import make_task
from train_jax.run.trainer_setup import make_steps

VIT = {"model.dropout_rate": 0.1, "augment.crop_padding": 1}
# Of two tests, so that the losses of one device are computed once.
both_models = pytest.mark.parametrize(
    "changes",
    [
        VIT | {"accumulation_steps": 2, "ema_decay": 0.9, "optimizer.name": "adamw"},
        RESNET,
    ],
    ids=["vit", "resnet"],
)


def _devices(platform, *slices, **attributes):
    """Describe devices, a tuple of numbers for each slice."""
    return [
        types.SimpleNamespace(
            platform=platform, slice_index=index, id=number, **attributes
        )
        for index, numbers in enumerate(slices)
        for number in numbers
    ]


def test_devices_of_several_slices_are_arranged_slice_by_slice():
    for platform in ("gpu", "cpu", "tpu"):
        devices = _devices(platform, (5, 0), (3, 2))
        arranged = sharding._arrange(devices[::-1], (1, 4))
        assert [each.id for each in arranged[0]] == [0, 5, 2, 3], platform


def test_tpus_that_cannot_be_arranged_along_their_links_are_taken_in_order():
    # The two cores of a chip have the same coordinates.
    how = {"device_kind": "TPU v4", "coords": (0, 0, 0), "core_on_chip": 1}
    arranged = sharding._arrange(_devices("tpu", (1, 0), **how), (2, 1))
    assert [each.id for each in arranged[:, 0]] == [0, 1]


@functools.cache
def losses_of_one_device(*changes):
    """The losses of a run on one device, and its last state; two tests share them."""
    devices = jax.devices()[:1]
    return losses_of_steps(make_tiny(dict(changes), has_noise=True, devices=devices))


@pytest.mark.slow  # compiles for three numbers of devices
@both_models
def test_any_number_of_devices_gives_the_same_losses(changes):
    expected, first_state = losses_of_one_device(*changes.items())
    for count in (2, 8):
        parts = make_tiny(changes, has_noise=True, devices=jax.devices()[:count])
        losses, state = losses_of_steps(parts)
        np.testing.assert_allclose(losses, expected, rtol=1e-5)
        # BatchNorm's statistics are those of the whole batch, so they agree as well.
        chex.assert_trees_all_close(
            jax.device_get(state.batch_stats),
            jax.device_get(first_state.batch_stats),
            rtol=1e-4,
            atol=1e-5,
        )


@both_models
def test_fsdp_on_eight_devices_gives_the_losses_of_one(changes):
    expected, _ = losses_of_one_device(*changes.items())
    shared = make_tiny(changes | {"fsdp": True}, has_noise=True)
    losses, state = losses_of_steps(shared)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    shares = [
        leaf.addressable_shards[0].data.size / leaf.size
        for leaf in jax.tree.leaves((state.params, state.opt_state))
    ]
    assert np.median(shares) == 1 / 8  # it stays shared out


def test_layout_of_the_state():
    mesh = sharding.make_mesh(6)
    assert dict(mesh.shape) == {"run": 2, "data": 4}
    assert dict(sharding.make_mesh(3).shape) == {"run": 1, "data": 8}
    assert dict(sharding.make_mesh(16).shape) == {"run": 8, "data": 1}
    state = {
        "step": np.zeros(6),
        "bias": np.zeros((6, 10)),
        "kernel": np.zeros((6, 8, 12)),
    }
    sharded = sharding.shard_state(state, mesh, num_runs=6, fsdp=True)
    specs = {name: tuple(leaf.sharding.spec) for name, leaf in sharded.items()}
    assert specs == {
        "step": (),
        "bias": ("run", None),
        "kernel": ("run", None, "data"),
    }


def test_fsdp_leaves_convolutions_of_a_cpu_out_of_the_loop():
    for fsdp in (False, True):
        config = tiny_config(RESNET | {"fsdp": fsdp})
        train, _, _ = load_dataset(config.dataset)
        task = make_task(config.dataset, config.augment, train)
        runs = make_runs(config, devices=jax.devices())
        model = make_model(config, task, devices=runs.devices)
        assert not make_steps(config, model, task, train, runs).in_a_loop


@pytest.mark.parametrize("fsdp", [False, True])
def test_a_checkpoint_restores_on_other_devices(tmp_path, fsdp):
    changes = VIT | {"num_epochs": 2, "fsdp": fsdp}
    summary = train_tiny(tmp_path, changes)
    states, losses = [], []
    for count in (8, 2, 1):
        parts = make_tiny(changes, devices=jax.devices()[:count])
        folder = tmp_path / wd.CHECKPOINTS
        state = checkpoint.restore(folder, 10, parts.abstract_state)
        assert len(state.step.sharding.device_set) == count
        losses += parts.evaluator(state.eval_variables, parts.test).loss_R.tolist()
        states.append(jax.device_get(state))
    chex.assert_trees_all_equal(*states)
    np.testing.assert_allclose(losses, summary["test_loss"], rtol=1e-5)


@pytest.mark.parametrize(
    ("limit", "used", "folder"),
    [
        ("memory.max", "memory.current", "."),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory"),
    ],
)
def test_the_limit_of_a_container(tmp_path, limit, used, folder):
    (tmp_path / folder).mkdir(exist_ok=True)
    for name, text in ((limit, "1000"), (used, "700"), ("memory.stat", "anon 5")):
        (tmp_path / folder / name).write_text(text + "\n")
    assert memory.free_in_cgroups(tmp_path) == 300
    # The job of a cluster has a group of its own, below.
    own = tmp_path / "cgroup"
    own.write_text("0::/job/step\n" if folder == "." else "9:memory:/job/step\n")
    (tmp_path / folder / "job" / "step").mkdir(parents=True)
    for name, text in ((limit, "300"), (used, "250"), ("memory.stat", "anon 5")):
        (tmp_path / folder / "job" / name).write_text(text + "\n")
    assert memory.free_in_cgroups(tmp_path, own) == 50
    statistics = "active_file 9\ninactive_file 200\nunevictable 0\n"
    (tmp_path / folder / "memory.stat").write_text(statistics)
    assert memory.free_in_cgroups(tmp_path) == 500
    (tmp_path / folder / limit).write_text("max\n")
    assert memory.free_in_cgroups(tmp_path) == float("inf")
    assert memory.free_in_cgroups(tmp_path / "missing") == float("inf")
