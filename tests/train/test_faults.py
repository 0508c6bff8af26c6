"""A run that is killed, stopped, damaged or out of disk space comes to the same end."""

import json
import os
import pathlib
import re
import shutil
import signal
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import train
from tests.train.nursery import Nursery
from tests.train.tiny import TINY
from train_jax.output import checkpoint
from train_jax.output import workdir as wd
from train_jax.output.files import read_json, write_json

# Everything that has a state of its own: two runs, accumulation, dropout, an average.
# An MLP has none, and takes time to compile.
CHANGES = {
    "model.mlp_ratio": None,
    "num_seeds": 2,
    "accumulation_steps": 2,
    "model.dropout_rate": 0.1,
    "augment.crop_padding": 1,
    "ema_decay": 0.9,
    "num_epochs": 12,
    "checkpoint.every_epochs": 1,
}
LAST_EPOCH = "\nepoch 12/12"
# A run whose results don't matter. With a constant learning rate, the compiled program
# is the same for any length.
PLAIN = [
    "--config.num_seeds=1",
    "--config.accumulation_steps=1",
    "--config.optimizer.schedule=constant",
]


@pytest.fixture(scope="module")
def start_nursery(tmp_path_factory):
    """A function that starts a nursery; all of them share compiled programs."""
    cache, nurseries = tmp_path_factory.mktemp("cache"), []

    def start():
        folder = tmp_path_factory.mktemp("nursery")
        nurseries.append(Nursery(folder, TINY | CHANGES, cache=cache))
        return nurseries[-1]

    yield start
    for nursery in nurseries:
        nursery.close()


@pytest.fixture(scope="module")
def nursery(start_nursery):
    return start_nursery()


@pytest.fixture(scope="module")
def whole(nursery, tmp_path_factory):
    """The folder of a run that nothing happened to."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    nursery.start(workdir)
    assert nursery.wait() == 0, nursery.output
    return workdir


def is_saving(folder: pathlib.Path) -> bool:
    """Whether a checkpoint is being written."""
    return any(folder.glob("*.orbax-checkpoint-tmp"))


def newest_step(folder: pathlib.Path) -> int:
    """The step of the newest checkpoint; 0 if there is none."""
    steps = [p.name for p in folder.iterdir()] if folder.exists() else []
    return max((int(name) for name in steps if name.isdecimal()), default=0)


def read_state(folder: pathlib.Path, step: int) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint's state, by name."""
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore((folder / str(step) / "state").absolute())
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def without_times(record):
    timing = ("seconds", "images_per_second", "train_seconds")
    return {k: v for k, v in record.items() if k not in timing}


def read_metrics(workdir: pathlib.Path):
    lines = (workdir / wd.METRICS).read_text().splitlines()
    return [without_times(json.loads(line)) for line in lines]


def assert_same_results(workdir: pathlib.Path, expected: pathlib.Path) -> None:
    """Compare two runs bit for bit: the last state, the metrics, the summary."""
    assert read_metrics(workdir) == read_metrics(expected)
    summaries = [read_json(folder / wd.SUMMARY) for folder in (workdir, expected)]
    assert without_times(summaries[0]) == without_times(summaries[1])
    folders = [folder / wd.CHECKPOINTS for folder in (workdir, expected)]
    steps = [checkpoint.find(folder, "last") for folder in folders]
    leaves, expected_leaves = map(read_state, folders, steps)
    assert leaves.keys() == expected_leaves.keys()
    for name, leaf in leaves.items():
        np.testing.assert_array_equal(leaf, expected_leaves[name], err_msg=name)


@pytest.mark.slow  # six starts, one for each kind of moment
def test_killed_at_any_moment(nursery, whole, tmp_path):
    workdir = tmp_path / "run"
    folder = workdir / wd.CHECKPOINTS
    generator = np.random.default_rng(0)
    before = 0

    def has_saved():
        return newest_step(folder) > before

    def has_compiled():
        return "compiled in" in nursery.output

    def is_ending():
        return re.search(r"\nepoch 1[0-2]/12", nursery.output) is not None

    def is_drawing():
        return (workdir / wd.PLOTS / "curves.png").exists()

    # What it has reached, for how many seconds it then goes on, and what ends them
    # early: however fast it is, it is not over before it is killed.
    for reached, seconds, latest in (
        ((workdir / wd.CONFIG).exists, 0.5, has_compiled),  # before the first save
        (lambda: is_saving(folder), 0.03, is_ending),
        (has_saved, 0.15, is_ending),
        (lambda: "resuming after step" in nursery.output, 0.5, is_ending),
        (lambda: LAST_EPOCH in nursery.output, 0.3, is_drawing),  # while it tests
    ):
        before = newest_step(folder)
        nursery.start(workdir, has_plots=True)
        nursery.wait_until(reached)
        end = time.monotonic() + generator.uniform(0, seconds)
        nursery.wait_until(
            lambda end=end, latest=latest: time.monotonic() > end or latest()
        )
        nursery.send(signal.SIGKILL)
        assert nursery.wait() == -signal.SIGKILL, nursery.output
    nursery.start(workdir)
    assert nursery.wait() == 0, nursery.output
    assert "resuming after step" in nursery.output
    assert_same_results(workdir, whole)


def test_the_newest_checkpoint_is_complete_at_any_moment(
    nursery, whole, tmp_path, capsys
):
    """Copies of the checkpoints, at many moments, are what a kill would leave."""
    folder = tmp_path / "run" / wd.CHECKPOINTS
    nursery.start(folder.parent)
    nursery.wait_until(folder.exists)
    copies = []

    def progress():
        return newest_step(folder), is_saving(folder)

    while LAST_EPOCH not in nursery.output:
        with nursery.frozen():
            copies.append(tmp_path / str(len(copies)))
            shutil.copytree(folder, copies[-1])
            before = progress()
        # Sooner if a save has begun or ended: none is missed on a fast disk.
        end = time.monotonic() + 0.02
        nursery.wait_until(
            lambda end=end, before=before: (
                time.monotonic() > end or progress() != before
            )
        )
    assert nursery.wait() == 0, nursery.output
    assert len([copy for copy in copies if is_saving(copy)]) > 5
    metrics, steps = read_metrics(whole), [0]
    for copy in copies:
        step = checkpoint.find(copy, "last") or 0
        assert capsys.readouterr().err == ""  # no checkpoint is damaged
        assert step >= steps[-1]
        if step > steps[-1]:
            records = checkpoint.read_metadata(copy, step)["metrics"]
            assert list(map(without_times, records)) == metrics[: step // 5]
            state = read_state(copy, step)
            assert set(state["step"]) == {step}
            loss_R = state["epoch_sums.loss"] / 5
            np.testing.assert_allclose(loss_R, records[-1]["train_loss"])
            steps.append(step)
    assert len(steps) > 5


@pytest.mark.slow  # three starts
def test_stopped_by_a_signal(nursery, whole, tmp_path):
    workdir = tmp_path / "run"
    generator = np.random.default_rng(1)
    for number in (signal.SIGTERM, signal.SIGINT):
        nursery.start(workdir)
        nursery.wait_until_training()
        time.sleep(generator.uniform(0, 0.5))
        nursery.send(number)
        assert nursery.wait() == 75, nursery.output
        assert f"{number.name}: finishing the step and saving" in nursery.output
        last_line = nursery.output.splitlines()[-1]
        found = re.search(r"stopped after step (\d+) of 60; the same comm", last_line)
        assert found is not None
        assert (workdir / wd.CHECKPOINTS / found[1]).is_dir()
    nursery.start(workdir)
    assert nursery.wait() == 0, nursery.output
    assert_same_results(workdir, whole)


def test_interrupted_twice_it_quits(nursery, tmp_path):
    nursery.start(tmp_path / "run", *PLAIN, "--config.num_epochs=100000")
    nursery.wait_until_training()
    # It reads its lock before it saves: the newest one is a pipe that nobody writes to.
    os.mkfifo(tmp_path / "run" / "lock.2")
    nursery.send(signal.SIGINT)
    nursery.wait_until(lambda: "finishing the step" in nursery.output)
    nursery.send(signal.SIGINT)
    assert nursery.wait() == 130, nursery.output


@pytest.mark.slow  # ten starts
def test_pairs_of_starts_in_one_folder(nursery, start_nursery, tmp_path):
    other, refused = start_nursery(), 0
    # The second one starts with the first one, or when it has printed this.
    moments = ("", "examples to train on", "compiled in", "\nepoch", "\ntest accuracy")
    for pair, moment in enumerate(moments):
        workdir = tmp_path / str(pair)
        how = ["--overwrite"] if pair % 2 else []
        length = ["--config.num_epochs=4", "--config.checkpoint.every_epochs=2"]
        nursery.start(workdir, *PLAIN, *length)
        nursery.wait_until(lambda moment=moment: moment in nursery.output)
        other.start(workdir, *PLAIN, *length, *how, f"--config.seed={pair % 2}")
        codes = [each.wait() for each in (nursery, other)]
        outputs = nursery.output + other.output
        assert "Traceback" not in outputs, outputs
        assert sorted(codes) in ([0, 0], [0, 2]), outputs
        refused += 2 in codes
        if 2 in codes:
            assert re.search(r"is in use by process \d+ on host ", outputs), outputs
        # All that is left is of one run.
        summary = read_json(workdir / wd.SUMMARY)
        config = read_json(workdir / wd.CONFIG)
        assert summary["config"] == config
        if pair % 2:  # the seed tells whose it is
            assert codes[config["seed"]] == 0
        lines = (workdir / wd.METRICS).read_text().splitlines()
        assert [json.loads(x)["step"] for x in lines] == [5, 10, 15, 20]
        step = checkpoint.find(workdir / wd.CHECKPOINTS, "last")
        assert step == 20
        metadata = checkpoint.read_metadata(workdir / wd.CHECKPOINTS, step)
        assert metadata["config"] == config
        assert metadata["metrics"] == [json.loads(x) for x in lines]
        assert not list(workdir.glob("lock.*"))
    assert refused >= 1


def copy_unfinished(original: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """Copy a run's folder, without the summary."""
    workdir = tmp_path / "run"
    shutil.copytree(original, workdir)
    (workdir / wd.SUMMARY).unlink()
    return workdir


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    nursery, whole, tmp_path
):
    workdir = copy_unfinished(whole, tmp_path)
    folder = workdir / wd.CHECKPOINTS
    files = (folder / "60" / "state").rglob("*")
    largest = max(files, key=lambda path: path.is_file() and path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    nursery.start(workdir)
    assert nursery.wait() == 0, nursery.output
    assert "checkpoints/60 is damaged: state/" in nursery.output
    assert "resuming after step 55 of 60" in nursery.output
    assert (folder / "damaged_60").is_dir()
    assert_same_results(workdir, whole)


def test_a_checkpoint_of_another_model_is_refused(whole, tmp_path, capsys):
    workdir = copy_unfinished(whole, tmp_path)
    write_json(workdir / wd.CONFIG, read_json(workdir / wd.CONFIG) | {"model.width": 8})
    fields = TINY | CHANGES | {"model.width": 8}
    flags = [f"--config.{field}={value}" for field, value in fields.items()]
    config = ["--config", "configs/vit_digits.py"]
    assert train.main([*config, "--workdir", str(workdir), *flags]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "config.model.width was 16 and is 8" in line
    assert checkpoint.find(workdir / wd.CHECKPOINTS, "last") == 60


def test_a_disk_that_is_full(nursery, whole, tmp_path):
    workdir = copy_unfinished(whole, tmp_path)
    folder = workdir / wd.CHECKPOINTS
    shutil.rmtree(folder / "60")
    # The largest file of a checkpoint is larger, all others of the run are smaller.
    nursery.start(workdir, file_size=15_000)
    assert nursery.wait() == 1, nursery.output
    # TensorStore may log more, before this line and after it.
    assert re.search(
        "^train.py: error: the checkpoint of step 60 could not be written: .*; "
        f"the last good checkpoint is {folder}/55$",
        nursery.output,
        re.MULTILINE,
    ), nursery.output
    assert checkpoint.find(folder, "last") == 55
    assert not (workdir / wd.SUMMARY).exists()
    nursery.start(workdir)
    assert nursery.wait() == 0, nursery.output
    assert_same_results(workdir, whole)
