"""Plan a training: what its step takes, on devices that need not be here."""

import dataclasses
import importlib.util
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from tests.train.tiny import RESNET, SMALL_RESNET, TINY, make_tiny, tiny_config
from train_jax import plan as plan_command
from train_jax.devices import sharding
from train_jax.devices.collectives import find_collectives
from train_jax.devices.flops import count_flops
from train_jax.devices.topology import CHIPS, Topology
from train_jax.run import step_plan as plan
from train_jax.run.model import make_model
from train_jax.run.runs import make_runs
from train_jax.run.task import make_task

CPUS = Topology(jax.devices(), None)


@pytest.fixture(scope="module")
def real():
    """The plan of the tiny config."""
    return plan.make_plan(tiny_config(), CPUS)


@pytest.mark.parametrize(
    "changes",
    [
        {"model.dropout_rate": 0.1, "fsdp": True, "ema_decay": 0.9},
        {"num_seeds": 2, "model.scan": True, "model.depth": 2},
        RESNET,
    ],
    ids=["fsdp", "seeds", "resnet"],
)
def test_it_describes_the_very_program_that_a_run_compiles(changes):
    parts = make_tiny(changes, model=None)
    steps, ((_, data),) = parts.trainer._steps, parts.trainer.feed(0, 1)
    real = dataclasses.replace(steps, inputs=(*data, parts.runs.keys["steps"]))
    expected = real.lower(parts.init_state())
    lowered = steps.lower(parts.abstract_state)
    assert lowered.as_text() == expected.as_text()


def test_a_streamed_set_takes_the_memory_of_a_batch():
    fields = {"dataset.name": "cifar10", "batch_size": 64}
    batch = 64 // 8 * (32 * 32 * 3 + 4 + 4)
    for changes, expected in (
        ({"dataset.streaming": True}, batch),
        ({"augment.crop_area": (0.1, 1.0)}, batch),
        ({}, 320 * (32 * 32 * 3 + 4 + 4)),
    ):
        found = plan.make_plan(tiny_config(fields | changes), CPUS)
        # Besides, the key of the steps.
        assert 0 <= found.memory["training images"] - expected <= 16


def test_runs_with_convolutions_gather_no_images():
    found = plan.make_plan(tiny_config({"model.stem": "conv", "num_seeds": 3}), CPUS)
    assert {each.kind for each in found.collectives} == {"all-reduce"}


def test_frozen_parameters_need_no_gradient(real):
    frozen = {"params": "^(?!head)", "learning_rate": 0}
    changes = {f"groups.frozen.{name}": value for name, value in frozen.items()}
    found = plan.make_plan(tiny_config(changes), CPUS)
    assert 0.3 < found.flops / real.flops < 0.4  # the forward pass
    assert found.model_flops <= found.flops


def test_parameters_and_optimiser_are_counted_as_by_hand():
    config = tiny_config({"optimizer.name": "adamw", "model.width": 64, "fsdp": True})
    dense = lambda inputs, outputs: inputs * outputs + outputs  # noqa: E731
    block = 4 * dense(64, 64) + dense(64, 256) + dense(256, 64) + 2 * 2 * 64
    rest = 64 + 5 * 64 + dense(16, 64) + 2 * 64 + dense(64, 10)
    whole = plan.make_plan(
        tiny_config({"optimizer.name": "adamw", "model.width": 64}), CPUS
    )
    assert whole.memory["parameters"] == 4 * (block + rest)
    # Two moments of each parameter; besides, counts and rates, numbers of four bytes.
    scalars = whole.memory["optimiser"] - 2 * 4 * (block + rest)
    assert 0 < scalars <= 4 * 16
    shared = plan.make_plan(config, CPUS)
    # Ten classes can't be shared among eight devices, all else can.
    assert shared.memory["parameters"] == 4 * ((block + rest - 10) / 8 + 10)
    assert whole.fits and whole.needed == sum(whole.memory.values())
    images = 320 * (8 * 8 + 4) + 320 * 4  # with the labels, and the order
    assert whole.memory["training images"] == pytest.approx(images, abs=16)


def test_flops_of_a_vit_are_those_of_the_usual_formula():
    width, depth, tokens, batch = 64, 3, 16, 64
    # With a class token, the last block would compute that one alone.
    changes = {"model.pool": "mean", "model.patch_size": 2}
    changes |= {"model.width": width, "model.depth": depth}
    found = plan.make_plan(tiny_config(changes), CPUS)
    in_blocks = depth * 12 * width**2
    attention = depth * 2 * tokens * width  # of each token: with keys, of values
    expected = 6 * batch * tokens * (in_blocks + attention)
    assert 8 * found.model_flops == pytest.approx(expected, rel=0.1)
    assert found.flops <= found.model_flops * 1.01


def test_flops_of_a_resnet_are_the_sum_over_its_convolutions(monkeypatch):
    monkeypatch.setattr(
        "train_jax.run.model.create_model", lambda *_, **__: SMALL_RESNET
    )
    config = tiny_config(RESNET)
    found = plan.make_plan(config, CPUS)
    forward, side = 8 * 8 * 9 * 1 * 8, 8
    for stage, features in enumerate((8, 16)):  # of one block of two convolutions
        before, strided = (8, 1) if stage == 0 else (features // 2, 2)
        side //= strided
        area = side * side
        forward += area * 9 * (before * features + features**2)
        forward += area * before * features if stage else 0
    forward += 16 * 10
    expected = 3 * 2 * forward * config.batch_size
    assert 8 * found.model_flops == pytest.approx(expected, rel=0.01)
    assert found.flops == pytest.approx(found.model_flops, rel=0.1)


def test_flops_of_loops_and_recomputation():
    def function(x):
        x, _ = jax.lax.scan(
            lambda x, _: (jax.checkpoint(jnp.dot)(x, x), None), x, length=5
        )
        return x.sum()

    forward = jax.jit(function).trace(jnp.ones((8, 8))).jaxpr
    assert count_flops(forward) == 5 * 2 * 8**3
    backward = jax.jit(jax.grad(function)).trace(jnp.ones((8, 8))).jaxpr
    assert count_flops(backward) >= 3 * 5 * 2 * 8**3


def test_collectives_are_counted_as_often_as_they_run():
    mesh = sharding.make_mesh()
    axis = sharding.DATA_AXIS

    def local(x):
        def body(x, _):
            whole = jax.lax.all_gather(x, axis, tiled=True)
            part = jax.lax.psum_scatter(whole * x[0], axis, tiled=True)
            return part + jax.lax.pmean(x, axis), None

        return jax.lax.scan(body, x, length=6)[0]

    spec = PartitionSpec(axis)
    function = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=spec))
    compiled = function.lower(jnp.ones(64, jnp.float32)).compile()
    found = find_collectives(compiled.as_text())
    times = {(each.kind, each.size, each.group): each.times for each in found}
    assert times == {
        ("all-gather", 256, 8): 6,
        ("reduce-scatter", 256, 8): 6,
        ("all-reduce", 32, 8): 6,
    }
    sent = {each.kind: each.sent for each in found}
    assert sent == {
        "all-gather": 6 * 256 * 7 / 8,
        "reduce-scatter": 6 * 256 * 7 / 8,
        "all-reduce": 6 * 2 * 32 * 7 / 8,
    }


def test_data_parallel_training_exchanges_its_gradient_once(real):
    sizes = [each.size for each in real.collectives if each.kind == "all-reduce"]
    (metrics,) = {sum(sizes) - real.memory["parameters"]}
    assert 0 <= metrics <= 8 and len(real.collectives) == len(sizes)


def test_a_fully_sharded_step_gathers_no_more_than_one_kernel_at_once():
    changes = {"model.width": 64, "model.depth": 4, "model.scan": True, "fsdp": True}
    found = plan.make_plan(tiny_config(changes), CPUS)
    gathered = [each for each in found.collectives if each.kind == "all-gather"]
    assert max(each.size for each in gathered) <= 4 * 64 * 256
    # Each kernel of each block is gathered forward and backward.
    large = [each for each in gathered if each.size == 4 * 64 * 256]
    assert {each.times for each in large} == {4} and len(large) >= 4


def test_bounds_are_those_of_the_slowest_part(real):
    assert real.bounds(None).step is None
    chip = CHIPS["v5e"]
    bounds = real.bounds(chip)
    assert bounds.products == real.flops / chip.flops
    assert bounds.step == max(bounds.products, bounds.traffic, bounds.exchange)
    assert bounds.mfu == pytest.approx(real.model_flops / chip.flops / bounds.step)


def test_well_known_sets_need_not_be_there(monkeypatch):
    monkeypatch.setattr(plan, "load_dataset", None)
    dataset = tiny_config(
        {"dataset.name": "mnist", "dataset.train_split": "train[:90%]"}
    )
    train = plan.stand_in_examples(dataset.dataset)
    assert train.image_BHWC.shape == (54_000, 28, 28, 1)
    known = tiny_config({"dataset.name": "imagenet2012"}).dataset
    with pytest.raises(ValueError, match="image_size must be given"):
        plan.stand_in_examples(known)


def test_a_plan_refuses_what_training_refuses():
    config = tiny_config({"augment.crop_area": (0.5, 1.0), "dataset.streaming": False})
    with pytest.raises(ValueError, match="crop_area needs images that are streamed"):
        plan.make_plan(config, CPUS)


def test_a_plan_reads_once_and_no_more_than_this_machine_holds(monkeypatch):
    rooms = []

    def load(*_, room, **__):
        rooms.append(room)
        return ["train", None, "test"]

    monkeypatch.setattr(plan, "load_dataset", load)
    monkeypatch.setattr(plan, "room_for_data", lambda: 7.0)
    dataset = tiny_config({"dataset.train_split": "train[:11]"}).dataset
    for room in (float("inf"), float("inf"), 5.0):
        assert plan.stand_in_examples(dataset, room=room) == "train"
    assert rooms == [7.0, 5.0]


def test_a_plan_streams_what_a_training_would_stream():
    fields = {"dataset.name": "cifar10", "dataset.train_split": "train[:100]"}
    fields |= {"dataset.test_split": "test", "dataset.val_split": None}
    dataset = tiny_config(fields).dataset
    num_bytes = 60_000 * 32 * 32 * 3  # of both splits, which are loaded whole
    for room, expected in ((num_bytes, False), (num_bytes - 1, True)):
        train = plan.stand_in_examples(dataset, room=room)
        assert train.is_streamed == expected and len(train) == 100
    resized = dataclasses.replace(dataset, image_size=8)
    room = 60_000 * (32 * 32 + 8 * 8) * 3
    assert not plan.stand_in_examples(resized, room=room).is_streamed
    assert plan.stand_in_examples(resized, room=room - 1).is_streamed
    photos = {"dataset.name": "imagenet2012", "dataset.image_size": 8}
    photos["dataset.test_split"] = "validation"
    assert plan.stand_in_examples(tiny_config(photos).dataset).is_streamed
    digits = tiny_config().dataset
    assert len(plan.stand_in_examples(digits)) == 320
    wrong = dataclasses.replace(dataset, test_split="validation")
    with pytest.raises(ValueError, match="'cifar10' has no split 'validation'"):
        plan.stand_in_examples(wrong)


def test_a_batch_that_fits_is_looked_for(monkeypatch, real):
    tried = []

    def make_plan(config, topology):
        size = config.batch_size
        tried.append(size)
        return dataclasses.replace(real, batch_size=size, fits=size <= 88)

    monkeypatch.setattr(plan_command, "make_plan", make_plan)
    for start in (64, 256):
        config = tiny_config({"batch_size": start})
        found = plan_command._find_largest(config, CPUS, make_plan(config, CPUS))
        assert found is not None and 80 <= found.batch_size <= 88
    assert all(size % 8 == 0 for size in tried)


def test_the_largest_batch_may_hold_all_examples(monkeypatch, real):
    def make_plan(config, topology):
        size = config.batch_size
        return dataclasses.replace(real, batch_size=size, num_examples=323)

    monkeypatch.setattr(plan_command, "make_plan", make_plan)
    config = tiny_config()
    found = plan_command._find_largest(config, CPUS, make_plan(config, CPUS))
    assert found is not None and found.batch_size == 320


def test_a_batch_that_the_config_refuses_ends_the_search(monkeypatch, real):
    def make_plan(config, topology):
        if config.batch_size < 64:
            raise ValueError("config.optimizer.warmup_epochs must be shorter")
        return dataclasses.replace(real, batch_size=config.batch_size, fits=False)

    monkeypatch.setattr(plan_command, "make_plan", make_plan)
    config = tiny_config({"batch_size": 80})
    assert plan_command._find_largest(config, CPUS, make_plan(config, CPUS)) is None


def test_an_automatic_batch_begins_with_one_that_divides(monkeypatch, capsys, real):
    tried = []

    def make_plan(config, topology):
        tried.append(config.batch_size)
        size = config.batch_size
        return dataclasses.replace(real, batch_size=size, num_runs=2, fits=size <= 64)

    monkeypatch.setattr(plan_command, "make_plan", make_plan)
    monkeypatch.setattr(plan_command, "make_topology", lambda _: CPUS)
    arguments = ["--config", "vit_digits", "--config.batch_size=60"]
    arguments += ["--topology", "cpu:8", "--batch_size", "auto"]
    assert plan_command.main(arguments) == 0
    assert tried[0] == 56 and all(size % 8 == 0 for size in tried)
    # 8 devices share two runs' batches of 64.
    out = capsys.readouterr().out
    assert "8 devices of cpu:8, batch 64 of each of 2 runs (16 each)" in out


WRONG = [
    ("v5e", "--topology must be KIND:SIZE"),
    ("v7x:2x2", "with a kind of v4, v5e, v5p, v6e, cpu"),
    ("v5e:0x4", "--topology must be KIND:SIZE"),
    ("cpu:0", "--topology must be KIND:SIZE"),
    ("cpu:2000", "takes a number of CPUs up to 1024"),
    ("cpu:2x2", "takes a number of CPUs"),
    ("2*cpu:2", "takes a number of CPUs"),
]


@pytest.mark.parametrize(("topology", "message"), WRONG)
def test_a_wrong_topology_is_one_line(topology, message, capsys):
    arguments = ["--config", "vit_digits", "--topology", topology]
    assert plan_command.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_platform_that_is_not_there_is_one_line(monkeypatch, capsys):
    def fail():
        raise RuntimeError("Unable to initialize backend 'cuda'")

    monkeypatch.setattr(jax, "devices", fail)
    arguments = ["--config", "vit_digits", "--topology", "v5e:2x2"]
    monkeypatch.setattr(plan_command, "make_topology", lambda _: None)
    assert plan_command.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "JAX has no device to compute on" in line


FIELDS = [f"--config.{field}={value}" for field, value in TINY.items()]


def run(*arguments):
    command = [sys.executable, "-m", "train_jax.plan", "--config", "vit_digits"]
    return subprocess.run(
        [*command, *arguments, *FIELDS], capture_output=True, text=True
    )


def test_the_command_says_what_does_not_divide(monkeypatch, capsys):
    five = Topology(jax.devices()[:5], None)
    monkeypatch.setattr(plan_command, "make_topology", lambda _: five)
    arguments = ["--config", "vit_digits", "--topology", "cpu:5", *FIELDS]
    assert plan_command.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "batch_size must be divisible by 5" in line


def test_the_command_prints_a_plan():
    process = run("--topology", "cpu:4", "--json")
    assert process.returncode == 0, process.stderr
    printed = json.loads(process.stdout)
    assert printed["num_devices"] == 4 and printed["fits"]
    config = tiny_config()
    task = make_task(config.dataset, config.augment, make_tiny().train)
    model = make_model(config, task)
    image = jnp.zeros((1, *task.image_shape))
    params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    assert printed["memory"]["parameters"] == 4 * count
    assert len(make_runs(config).devices) == 8


@pytest.mark.slow  # compiles for a TPU
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu, the extra [plan]"
)
def test_a_slice_that_is_not_there():
    process = run("--topology", "v5e:2x2")
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    assert "4 devices of v5e:2x2" in process.stdout
    assert "fits into 16.00 GiB" in process.stdout and "(MFU)" in process.stdout
    process = run("--topology", "v5e:3x5")
    assert process.returncode == 2 and process.stderr.count("\n") == 1
