"""What may happen to a run: killed, stopped, damaged, out of disk. It loses nothing."""

import json
import pathlib
import re
import shutil
import signal
import time

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.train.nursery import Nursery
from tests.train.tiny import TINY, last_state, tiny_config, train_tiny
from train_jax.config.config import to_json
from train_jax.output import checkpoint
from train_jax.output import workdir as wd
from train_jax.output.files import read_json, write_json
from train_jax.run.failures import Failed

# Everything that has a state of its own: two runs, accumulation, dropout, an average.
CHANGES = {
    "num_seeds": 2,
    "accumulation_steps": 2,
    "model.dropout_rate": 0.1,
    "augment.crop_padding": 1,
    "ema_decay": 0.9,
    "num_epochs": 40,
    "checkpoint.every_epochs": 1,
}


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    fields = TINY | CHANGES
    nursery = Nursery(tmp_path_factory.mktemp("nursery"), fields)
    yield nursery
    nursery.close()


@pytest.fixture(scope="module")
def whole(nursery, tmp_path_factory):
    """The folder of a run that nothing happened to."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    nursery.start(workdir)
    assert nursery.wait() == 0, nursery.output
    return workdir


def newest_step(folder: pathlib.Path) -> int:
    """The step of the newest checkpoint; 0 if there is none."""
    steps = [p.name for p in folder.iterdir()] if folder.exists() else []
    return max((int(name) for name in steps if name.isdecimal()), default=0)


def results(workdir: pathlib.Path):
    """All that a run computes: its last state, its metrics, its summary."""
    step = checkpoint.find(workdir / wd.CHECKPOINTS, "last")
    folder = (workdir / wd.CHECKPOINTS / str(step) / "state").absolute()
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore(folder)
    leaves = {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    timing = ("seconds", "images_per_second", "train_seconds")
    lines = [json.loads(x) for x in (workdir / wd.METRICS).read_text().splitlines()]
    lines.append(read_json(workdir / wd.SUMMARY))
    return leaves, [{k: v for k, v in x.items() if k not in timing} for x in lines]


def assert_same_results(workdir: pathlib.Path, expected: pathlib.Path) -> None:
    """Compare two runs bit for bit."""
    leaves, lines = results(workdir)
    expected_leaves, expected_lines = results(expected)
    assert lines == expected_lines
    assert leaves.keys() == expected_leaves.keys()
    for name, leaf in leaves.items():
        np.testing.assert_array_equal(leaf, expected_leaves[name], err_msg=name)


@pytest.mark.slow  # nine starts
def test_killed_at_eight_moments(nursery, whole, tmp_path):
    workdir = tmp_path / "run"
    folder = workdir / wd.CHECKPOINTS
    generator = np.random.default_rng(0)
    for life in range(8):
        before = newest_step(folder)
        nursery.start(workdir)
        if life % 2:
            nursery.wait_until(lambda before=before: newest_step(folder) > before)
            time.sleep(generator.uniform(0, 0.15))
        else:  # while it saves
            nursery.wait_until_training()
            nursery.wait_until(lambda: any(folder.glob("*.orbax-checkpoint-tmp")))
            time.sleep(generator.uniform(0, 0.03))
        nursery.send(signal.SIGKILL)
        assert nursery.wait() == -signal.SIGKILL, "too fast to be killed"
    nursery.start(workdir)
    assert nursery.wait() == 0, nursery.output
    assert "resuming after step" in nursery.output
    assert_same_results(workdir, whole)


@pytest.mark.slow  # four starts
def test_terminated_at_three_moments(nursery, whole, tmp_path):
    workdir = tmp_path / "run"
    generator = np.random.default_rng(1)
    for _ in range(3):
        nursery.start(workdir)
        nursery.wait_until_training()
        time.sleep(generator.uniform(0, 0.5))
        nursery.send(signal.SIGTERM)
        assert nursery.wait() == 75, nursery.output
        assert "SIGTERM: finishing the step and saving" in nursery.output
        last_line = nursery.output.splitlines()[-1]
        found = re.search(r"stopped after step (\d+) of 200; the same comm", last_line)
        assert found is not None
        assert (workdir / wd.CHECKPOINTS / found[1]).is_dir()
    nursery.start(workdir)
    assert nursery.wait() == 0, nursery.output
    assert_same_results(workdir, whole)


@pytest.mark.slow  # two starts
def test_interrupted_once_it_saves_and_twice_it_quits(nursery, tmp_path):
    workdir = tmp_path / "run"
    # Every step is half a minute away from its end: it cannot have been finished.
    nursery.start(workdir, "--config.num_epochs=100000", "--config.batch_size=320")
    nursery.wait_until_training()
    nursery.send(signal.SIGINT)
    assert nursery.wait() == 75, nursery.output
    nursery.start(workdir, "--config.num_epochs=100000", "--config.batch_size=320")
    nursery.wait_until_training()
    nursery.send(signal.SIGINT)
    nursery.wait_until(lambda: "finishing the step" in nursery.output)
    nursery.send(signal.SIGINT)
    assert nursery.wait() in (130, 75)


@pytest.fixture(scope="module")
def second_nursery(tmp_path_factory):
    """For a second run at the same time."""
    nursery = Nursery(tmp_path_factory.mktemp("second"), TINY | CHANGES)
    yield nursery
    nursery.close()


@pytest.mark.slow  # eight starts
def test_four_pairs_of_starts_in_one_folder(nursery, second_nursery, tmp_path):
    generator = np.random.default_rng(2)
    refused = 0
    for pair in range(4):
        workdir = tmp_path / str(pair)
        how = ["--overwrite"] if pair % 2 else []
        length = ["--config.num_epochs=10", "--config.checkpoint.every_epochs=5"]
        nursery.start(workdir, *length)
        time.sleep(generator.uniform(0, 2))
        second_nursery.start(workdir, *length, *how, f"--config.seed={pair % 2}")
        codes = [each.wait() for each in (nursery, second_nursery)]
        outputs = nursery.output + second_nursery.output
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
        assert [json.loads(x)["step"] for x in lines] == list(range(5, 55, 5))
        step = checkpoint.find(workdir / wd.CHECKPOINTS, "last")
        assert step == 50
        metadata = checkpoint.read_metadata(workdir / wd.CHECKPOINTS, step)
        assert metadata["config"] == config
        assert metadata["metrics"] == [json.loads(x) for x in lines]
        assert not list(workdir.glob("lock.*"))
    assert refused >= 1


@pytest.mark.slow  # two starts
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    nursery, whole, tmp_path
):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    (workdir / wd.SUMMARY).unlink()
    files = (workdir / wd.CHECKPOINTS / "200" / "state").rglob("*")
    largest = max(files, key=lambda path: path.is_file() and path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    nursery.start(workdir)
    assert nursery.wait() == 0, nursery.output
    assert "checkpoints/200 is damaged: state/" in nursery.output
    assert "resuming after step 195 of 200" in nursery.output
    assert (workdir / wd.CHECKPOINTS / "damaged_200").is_dir()
    assert_same_results(workdir, whole)
    (workdir / wd.SUMMARY).unlink()

    for folder in (workdir / wd.CHECKPOINTS).iterdir():
        if folder.name.isdecimal():
            (folder / "checksums.json").unlink()
    nursery.start(workdir)
    assert nursery.wait() == 1
    assert "train.py: error: all checkpoints in" in nursery.output.splitlines()[-1]


@pytest.mark.slow  # three starts
def test_a_disk_that_is_full(nursery, whole, tmp_path):
    workdir = tmp_path / "run"
    nursery.start(workdir)
    metrics = workdir / wd.METRICS
    nursery.wait_until(lambda: metrics.exists() and metrics.stat().st_size > 1_000)
    nursery.send(signal.SIGTERM)
    assert nursery.wait() == 75, nursery.output
    good = checkpoint.find(workdir / wd.CHECKPOINTS, "last")
    nursery.start(workdir, file_size=50_000)
    assert nursery.wait() == 1, nursery.output
    pattern = (
        r"^train.py: error: the checkpoint of step (\d+) could not be written: .*; "
        rf"the last good checkpoint is {workdir}/.*/(\d+)$"
    )
    found = re.search(pattern, nursery.output, re.MULTILINE)
    assert found is not None, nursery.output
    failed, last_good = map(int, found.groups())
    assert good <= last_good < failed  # a save may be small enough, or cut in files
    assert checkpoint.find(workdir / wd.CHECKPOINTS, "last") == last_good
    nursery.start(workdir)
    assert nursery.wait() == 0, nursery.output
    assert_same_results(workdir, whole)


def test_damaged_checkpoints_are_put_aside(two_checkpoints, tmp_path):
    workdir, folder = _copy(two_checkpoints, tmp_path)
    (folder / "10" / "checksums.json").write_text("{")
    train_tiny(workdir, TWO_EPOCHS)
    assert {path.name for path in folder.iterdir()} == {"5", "10", "damaged_10"}
    chex.assert_trees_all_equal(
        last_state(workdir, TWO_EPOCHS), last_state(two_checkpoints, TWO_EPOCHS)
    )

    (workdir / wd.SUMMARY).unlink()
    for step in ("5", "10"):
        (folder / step / "checksums.json").write_text(
            '{"files": {"state/no": "such file"}}'
        )
    with pytest.raises(Failed, match="are damaged; --overwrite starts anew"):
        train_tiny(workdir, TWO_EPOCHS)
    assert {path.name for path in folder.iterdir()} == {"5", "10", "damaged_10"}


def test_a_checkpoint_of_another_model_is_refused(two_checkpoints, tmp_path):
    workdir, folder = _copy(two_checkpoints, tmp_path)
    changes = TWO_EPOCHS | {"model.width": 32}
    write_json(workdir / wd.CONFIG, to_json(tiny_config(changes)))
    with pytest.raises(Failed, match=r"config\.model\.width was 16 and is 32"):
        train_tiny(workdir, changes)
    assert checkpoint.find(folder, "last") == 10


TWO_EPOCHS = {"num_epochs": 2}


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    """The folder of a run with two checkpoints."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    train_tiny(workdir, TWO_EPOCHS)
    return workdir


def _copy(original: pathlib.Path, tmp_path: pathlib.Path):
    """Copy a run that has no summary yet; returns its folder and the checkpoints'."""
    workdir = tmp_path / "run"
    shutil.copytree(original, workdir)
    (workdir / wd.SUMMARY).unlink()
    return workdir, workdir / wd.CHECKPOINTS
