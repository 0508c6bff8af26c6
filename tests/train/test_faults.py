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
from tests.train.tiny import TINY, set_up
from train_jax.output import checkpoint
from train_jax.output import workdir as wd
from train_jax.run import loop

# Everything that has a state of its own: two runs, accumulation, dropout, an average.
CHANGES = {
    "num_seeds": 2,
    "accumulation_steps": 2,
    "model.dropout_rate": 0.1,
    "augment.crop_padding": 1,
    "ema_decay": 0.9,
    "num_epochs": 100,
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
    step = checkpoint.find_newest(workdir / wd.CHECKPOINTS)
    folder = (workdir / wd.CHECKPOINTS / str(step) / "state").absolute()
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore(folder)
    leaves = {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    timing = ("seconds", "images_per_second", "train_seconds")
    lines = [json.loads(x) for x in (workdir / wd.METRICS).read_text().splitlines()]
    lines.append(wd.read_json(workdir / wd.SUMMARY))
    return leaves, [{k: v for k, v in x.items() if k not in timing} for x in lines]


def assert_same_results(workdir: pathlib.Path, expected: pathlib.Path) -> None:
    """Compare two runs bit for bit."""
    leaves, lines = results(workdir)
    expected_leaves, expected_lines = results(expected)
    assert lines == expected_lines
    assert leaves.keys() == expected_leaves.keys()
    for name, leaf in leaves.items():
        np.testing.assert_array_equal(leaf, expected_leaves[name], err_msg=name)


@pytest.mark.slow
def test_killed_at_twenty_moments(nursery, whole, tmp_path):
    workdir = tmp_path / "run"
    folder = workdir / wd.CHECKPOINTS
    generator = np.random.default_rng(0)
    for life in range(20):
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
        assert nursery.wait() == -signal.SIGKILL, "too fast to be killed 20 times"
    nursery.start(workdir)
    assert nursery.wait() == 0, nursery.output
    assert "resuming after step" in nursery.output
    assert_same_results(workdir, whole)


@pytest.mark.slow
def test_terminated_at_five_moments(nursery, whole, tmp_path):
    workdir = tmp_path / "run"
    generator = np.random.default_rng(1)
    for _ in range(5):
        nursery.start(workdir)
        nursery.wait_until_training()
        time.sleep(generator.uniform(0, 0.5))
        nursery.send(signal.SIGTERM)
        assert nursery.wait() == 75, nursery.output
        assert "SIGTERM: finishing the step and saving" in nursery.output
        last_line = nursery.output.splitlines()[-1]
        found = re.search(r"stopped after step (\d+) of 500; the same comm", last_line)
        assert found is not None
        assert (workdir / wd.CHECKPOINTS / found[1]).is_dir()
    nursery.start(workdir)
    assert nursery.wait() == 0, nursery.output
    assert_same_results(workdir, whole)


@pytest.mark.slow
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
    started = time.monotonic()
    nursery.send(signal.SIGINT)
    assert nursery.wait() in (130, 75)
    assert time.monotonic() - started < 3


@pytest.fixture(scope="module")
def second_nursery(tmp_path_factory):
    """For a second run at the same time."""
    nursery = Nursery(tmp_path_factory.mktemp("second"), TINY | CHANGES)
    yield nursery
    nursery.close()


@pytest.mark.slow  # forty starts
def test_twenty_pairs_of_starts_in_one_folder(nursery, second_nursery, tmp_path):
    generator = np.random.default_rng(2)
    refused = 0
    for pair in range(20):
        workdir = tmp_path / str(pair)
        how = ["--overwrite"] if pair % 2 else []
        length = ["--config.num_epochs=20", "--config.checkpoint.every_epochs=10"]
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
        summary = wd.read_json(workdir / wd.SUMMARY)
        config = wd.read_json(workdir / wd.CONFIG)
        assert summary["config"] == config
        if pair % 2:  # the seed tells whose it is
            assert codes[config["seed"]] == 0
        lines = (workdir / wd.METRICS).read_text().splitlines()
        assert [json.loads(x)["step"] for x in lines] == list(range(5, 105, 5))
        step = checkpoint.find_newest(workdir / wd.CHECKPOINTS)
        assert step == 100
        about = checkpoint.read_metadata(workdir / wd.CHECKPOINTS, step)
        assert about["config"] == config
        assert about["metrics"] == [json.loads(x) for x in lines]
        assert not list(workdir.glob("lock.*"))
    assert refused >= 5


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    nursery, whole, tmp_path
):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    (workdir / wd.SUMMARY).unlink()
    (largest,) = _largest_files(workdir / wd.CHECKPOINTS / "500")[:1]
    largest.write_bytes(largest.read_bytes()[:-1])
    nursery.start(workdir)
    assert nursery.wait() == 0, nursery.output
    assert "checkpoints/500 is damaged: state/" in nursery.output
    assert "resuming after step 495 of 500" in nursery.output
    assert (workdir / wd.CHECKPOINTS / "damaged_500").is_dir()
    assert_same_results(workdir, whole)
    (workdir / wd.SUMMARY).unlink()

    for folder in (workdir / wd.CHECKPOINTS).iterdir():
        if folder.name.isdecimal():
            (folder / "checksums.json").unlink()
    nursery.start(workdir)
    assert nursery.wait() == 1
    assert "train.py: error: all checkpoints in" in nursery.output.splitlines()[-1]


@pytest.mark.slow
def test_a_disk_that_is_full(nursery, whole, tmp_path):
    workdir = tmp_path / "run"
    nursery.start(workdir)
    metrics = workdir / wd.METRICS
    nursery.wait_until(lambda: metrics.exists() and metrics.stat().st_size > 1_000)
    nursery.send(signal.SIGTERM)
    assert nursery.wait() == 75, nursery.output
    good = checkpoint.find_newest(workdir / wd.CHECKPOINTS)
    nursery.start(workdir, file_size=50_000)
    assert nursery.wait() == 1, nursery.output
    message = nursery.output.splitlines()[-1]
    pattern = (
        r"error: the checkpoint of step (\d+) could not be written: .*; the last good"
    )
    found = re.search(
        rf"train.py: {pattern} checkpoint is {workdir}/.*/(\d+)$", message
    )
    assert found is not None, message
    failed, last_good = map(int, found.groups())
    assert good <= last_good < failed  # a save may be small enough, or cut in files
    assert checkpoint.find_newest(workdir / wd.CHECKPOINTS) == last_good
    nursery.start(workdir)
    assert nursery.wait() == 0, nursery.output
    assert_same_results(workdir, whole)


def _largest_files(folder: pathlib.Path) -> list[pathlib.Path]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return sorted(files, key=lambda path: path.stat().st_size, reverse=True)


@pytest.fixture(scope="module")
def two_states(tmp_path_factory):
    """A folder with two checkpoints, and the state in each."""
    ready = set_up(tmp_path_factory.mktemp("states") / "run", {"num_epochs": 2})
    loop.train_and_evaluate(ready)
    folder = ready.workdir / wd.CHECKPOINTS
    return ready, folder, {step: _restore(ready, folder, step) for step in (5, 10)}


def _restore(ready, folder, step):
    template = ready.first_state()
    layout = ready.state_sharding(template)
    return checkpoint.restore(folder, step, template, layout)


def _truncate(content: bytes, generator: np.random.Generator) -> bytes:
    return content[: generator.integers(len(content))]


def _flip(content: bytes, generator: np.random.Generator) -> bytes:
    changed = bytearray(content)
    changed[generator.integers(len(content))] ^= 1 << generator.integers(8)
    return bytes(changed)


@pytest.mark.parametrize("damage", [_truncate, _flip], ids=["truncated", "flipped"])
@pytest.mark.parametrize("seed", range(10))
def test_damage_never_yields_a_wrong_state(two_states, tmp_path, capsys, damage, seed):
    ready, original, states = two_states
    folder = tmp_path / "checkpoints"
    shutil.copytree(original, folder)
    generator = np.random.default_rng(seed)
    files = [path for path in _largest_files(folder / "10") if path.stat().st_size]
    # Half of them where the arrays lie, half of them anywhere.
    path = files[0] if seed % 2 else files[generator.integers(len(files))]
    path.write_bytes(damage(path.read_bytes(), generator))
    step = checkpoint.find_newest(folder)
    warning = capsys.readouterr().err
    if step == 10:  # a note of Orbax's beside the items, which nothing depends on
        assert path.parent == folder / "10" and path.name != "checksums.json"
    else:
        assert step == 5
        assert f"warning: checkpoint {folder / '10'} is damaged: " in warning
        assert path.name in warning
    chex.assert_trees_all_equal(_restore(ready, folder, step), states[step])


def test_damage_to_the_checksums_is_named_as_such(two_states, tmp_path, capsys):
    _, original, _ = two_states
    folder = tmp_path / "checkpoints"
    shutil.copytree(original, folder)
    seal = folder / "10" / "checksums.json"
    content = seal.read_bytes()
    for position in range(0, len(content), 5):
        changed = bytearray(content)
        changed[position] ^= 1 << position % 8
        seal.write_bytes(changed)
        assert checkpoint.find_newest(folder) == 5, position
        assert "10 is damaged: checksums.json " in capsys.readouterr().err, position
    seal.write_bytes(content)
    assert checkpoint.find_newest(folder) == 10


def test_a_file_that_is_missing_is_damage(two_states, tmp_path, capsys):
    _, original, _ = two_states
    folder = tmp_path / "checkpoints"
    shutil.copytree(original, folder)
    (folder / "10" / "about" / "metadata").unlink()
    assert checkpoint.find_newest(folder) == 5
    assert "10 is damaged: about/metadata is missing" in capsys.readouterr().err


def test_damaged_checkpoints_are_put_aside(two_states, tmp_path):
    _, original, states = two_states
    copy = set_up(tmp_path / "run", {"num_epochs": 2})
    wd.prepare(copy.workdir, copy.config, overwrite=False)
    folder = copy.workdir / wd.CHECKPOINTS
    shutil.copytree(original, folder)
    (folder / "10" / "checksums.json").write_text("{")
    loop.train_and_evaluate(copy)
    assert {path.name for path in folder.iterdir()} == {"5", "10", "damaged_10"}
    chex.assert_trees_all_equal(_restore(copy, folder, 10), states[10])

    (copy.workdir / wd.SUMMARY).unlink()
    for step in ("5", "10"):
        (folder / step / "checksums.json").write_text(
            '{"files": {"state/no": "such file"}}'
        )
    with pytest.raises(loop.Failed, match="are damaged; --overwrite starts anew"):
        loop.train_and_evaluate(copy)
    assert {path.name for path in folder.iterdir()} == {"5", "10", "damaged_10"}


def test_a_checkpoint_of_another_model_is_refused(two_states, tmp_path):
    _, original, _ = two_states
    ready = set_up(tmp_path / "run", {"num_epochs": 2, "model.width": 32})
    wd.prepare(ready.workdir, ready.config, overwrite=False)
    shutil.copytree(original, ready.workdir / wd.CHECKPOINTS)
    with pytest.raises(loop.Failed, match=r"config\.model\.width was 16 and is 32"):
        loop.train_and_evaluate(ready)
    assert checkpoint.find_newest(ready.workdir / wd.CHECKPOINTS) == 10


def test_the_newest_and_the_best_are_kept(two_states, tmp_path):
    ready, _, _ = two_states
    state = ready.first_state()
    checkpoints = checkpoint.Checkpoints(tmp_path / "checkpoints", keep=2)
    for step, score in enumerate((0.5, 0.9, 0.7, checkpoint.NOT_SCORED, 0.8), start=1):
        checkpoints.save(step, state, {}, score=score)
    checkpoints.wait()
    checkpoints.close()
    assert checkpoints.newest == 5
    left = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert left == {"2", "4", "5"}
