"""Checkpoints: saved, found by name, verified; damaged ones are named and renamed."""

import contextlib
import json
import os
import pathlib
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from train_jax.devices import sharding
from train_jax.learning.state import TrainState
from train_jax.output import checkpoint, checkpoint_search, checksums
from train_jax.output.files import write_json

SCORES = {5: 0.5, 10: 0.9, 15: 0.7}


def make_state(step):
    """A state with what the real one holds: arrays and keys."""
    weight = jnp.full((64, 64), step, jnp.float32)
    return {"step": jnp.int32(step), "params": {"weight": weight}}


def restore(directory, step):
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract_state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
        jax.eval_shape(make_state, 0),
    )
    return checkpoint.restore(directory, step, abstract_state)


def save(directory, scores, keep=9):
    checkpoints = checkpoint.Checkpoints(directory, keep=keep)
    for step, score in scores.items():
        checkpoints.save(step, make_state(step), {"epoch": step / 5}, score=score)
    checkpoints.wait()
    checkpoints.close()
    return checkpoints


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A folder with three checkpoints, of which the second has the best score."""
    directory = tmp_path_factory.mktemp("original") / "checkpoints"
    save(directory, SCORES)
    return directory


@pytest.fixture
def directory(original, tmp_path):
    """A copy of that folder."""
    return shutil.copytree(original, tmp_path / "checkpoints")


@pytest.fixture
def verified(monkeypatch):
    """Names of the checkpoints whose every file is compared with its checksum."""
    names = []
    find_damage = checksums.find_damage

    def record(folder, subfolder=""):
        if not subfolder:
            names.append(folder.name)
        return find_damage(folder, subfolder)

    monkeypatch.setattr(checksums, "find_damage", record)
    return names


def damage(directory, step, item="state"):
    """Append a byte to the largest file of an item."""
    files = filter(pathlib.Path.is_file, (directory / str(step) / item).rglob("*"))
    path = max(files, key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes() + b"x")
    return path


def test_state_and_metadata_come_back(directory):
    for step in SCORES:
        chex.assert_trees_all_equal(restore(directory, step), make_state(step))
        assert checkpoint.read_metadata(directory, step) == {"epoch": step / 5}


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_the_variables_alone_come_back(tmp_path, ema_decay):
    def make(value):
        params = {"weight": jnp.full((4, 4), value)}
        variables = {"params": params, "batch_stats": {"mean": jnp.full(4, value)}}
        return TrainState.create(variables, optax.adam(1e-3), ema_decay=ema_decay)

    state = make(2.0)
    if ema_decay is not None:
        state = state.replace(ema=jax.tree.map(jnp.zeros_like, state.ema))
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=1)
    checkpoints.save(3, state, {}, score=0.0)
    checkpoints.wait()
    checkpoints.close()
    abstract = jax.eval_shape(make, 0.0).replace(opt_state=None)
    one_device = sharding.make_mesh(devices=jax.devices()[:1])
    abstract = sharding.abstract(abstract, sharding.replicated(one_device))
    restored = checkpoint.restore_variables(tmp_path, 3, abstract)
    chex.assert_trees_all_equal(restored, state.eval_variables)
    name = "params" if ema_decay is None else "ema"
    more = getattr(abstract, name) | {"more": abstract.step}
    with pytest.raises(checkpoint.CheckpointError, match="variables are missing"):
        checkpoint.restore_variables(tmp_path, 3, abstract.replace(**{name: more}))


def test_a_state_of_another_structure_is_named(directory):
    other = {"something_else": jax.ShapeDtypeStruct((), jnp.float32)}
    with pytest.raises(checkpoint.CheckpointError) as error:
        checkpoint.restore(directory, 5, other)
    message = str(error.value)
    assert message.startswith("checkpoint 5 does not fit this version of the program")
    assert "\n" not in message


def test_state_saved_from_many_devices_is_restored_to_one(tmp_path):
    sharded = sharding.batch_sharding(sharding.make_mesh())
    state = make_state(3)
    weight = jnp.arange(64.0 * 64).reshape(64, 64)
    state["params"] = {"weight": jax.device_put(weight, sharded)}
    checkpoints = checkpoint.Checkpoints(tmp_path / "checkpoints", keep=1)
    checkpoints.save(3, state, {})
    checkpoints.wait()
    checkpoints.close()
    restored = restore(tmp_path / "checkpoints", 3)
    chex.assert_trees_all_equal(restored, state)
    assert len(restored["params"]["weight"].devices()) == 1


def test_the_newest_and_the_best_are_kept(tmp_path):
    scores = {1: 0.5, 2: 0.9, 3: 0.7, 4: checkpoint.NOT_SCORED, 5: 0.8}
    checkpoints = save(tmp_path / "checkpoints", scores, keep=2)
    assert checkpoints.newest == 5
    assert checkpoints.last_good.endswith("/checkpoints/5")
    left = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert left == {"2", "4", "5"}


def test_start_verifies_only_the_newest(directory, verified):
    damage(directory, 5)
    checkpoints = checkpoint.Checkpoints(directory, keep=9)
    checkpoints.close()
    assert (checkpoints.newest, verified) == (15, ["15"])
    assert {path.name for path in directory.iterdir()} == {"5", "10", "15"}


def test_start_renames_damaged_newer_checkpoints(directory, verified, capsys):
    damage(directory, 15)
    checkpoints = checkpoint.Checkpoints(directory, keep=9)
    checkpoints.close()
    assert (checkpoints.newest, verified) == (10, ["15", "10"])
    assert {path.name for path in directory.iterdir()} == {"5", "10", "damaged_15"}
    warning = f"warning: checkpoint {directory / '15'} is damaged: state/"
    assert capsys.readouterr().err.startswith(warning)
    save(directory, {15: 0.1})
    damage(directory, 15)
    checkpoint.Checkpoints(directory, keep=9).close()
    assert {path.name for path in directory.iterdir()} == {"5", "10", "damaged_15"}


@pytest.mark.parametrize("change", ["missing", "text"])
def test_start_renames_older_checkpoints_without_a_readable_score(
    directory, verified, capsys, change
):
    file = directory / "5" / "metrics" / "metrics"
    file.unlink() if change == "missing" else file.write_text("{")
    checkpoints = checkpoint.Checkpoints(directory, keep=1)
    assert (checkpoints.newest, verified) == (15, ["15"])
    checkpoints.save(20, make_state(20), {}, score=0.1)
    checkpoints.wait()
    checkpoints.close()
    assert {p.name for p in directory.iterdir()} == {"10", "20", "damaged_5"}
    assert "5 is damaged: metrics/metrics " in capsys.readouterr().err


@pytest.mark.parametrize("item", ["state", "metrics"])
def test_start_without_any_complete_checkpoint(directory, capsys, item):
    for step in SCORES:
        damage(directory, step, item)
    expected = f"all checkpoints in '{directory}' are damaged"
    # Other commands than the training do not overwrite a run.
    for function, remedy in (
        (
            lambda: checkpoint.Checkpoints(directory, keep=9),
            "; --overwrite starts anew",
        ),
        (lambda: checkpoint.find(directory, "last"), ""),
        (lambda: checkpoint.find(directory, "best"), ""),
    ):
        with pytest.raises(checkpoint.CheckpointError) as caught:
            function()
        assert str(caught.value) == expected + remedy
        assert capsys.readouterr().err.count("warning: checkpoint ") == 3
    assert {path.name for path in directory.iterdir()} == {"5", "10", "15"}


@pytest.mark.parametrize(
    ("which", "expected"), [("last", 15), ("best", 10), ("5", 5), ("10", 10)]
)
def test_find_verifies_only_what_it_returns(directory, verified, which, expected):
    assert checkpoint.find(directory, which) == expected
    assert verified == [str(expected)]


@pytest.mark.parametrize(("which", "expected"), [("last", 10), ("best", 15)])
def test_find_takes_the_next_if_the_first_is_damaged(
    directory, capsys, which, expected
):
    first = 15 if which == "last" else 10
    path = damage(directory, first)
    assert checkpoint.find(directory, which) == expected
    assert capsys.readouterr().err == (
        f"warning: checkpoint {directory / str(first)} is damaged: "
        f"{path.relative_to(directory / str(first))} has changed since it was written\n"
    )


def test_best_ignores_a_damaged_score(directory, capsys):
    path = directory / "5" / "metrics" / "metrics"
    path.write_text(json.dumps({"score": 1.0}))
    assert checkpoint.find(directory, "best") == 10
    assert "5 is damaged: metrics/metrics has changed" in capsys.readouterr().err
    checkpoints = checkpoint.Checkpoints(directory, keep=9)
    assert checkpoints.best() == 10
    checkpoints.close()


def test_best_of_equals_is_the_newest(tmp_path):
    directory = tmp_path / "checkpoints"
    save(directory, {1: 0.5, 2: 0.5, 3: checkpoint.NOT_SCORED})
    assert checkpoint.find(directory, "best") == 2
    save(tmp_path / "others", {9: checkpoint.NOT_SCORED, 10: checkpoint.NOT_SCORED})
    assert checkpoint.find(tmp_path / "others", "best") == 10


def test_find_names_what_is_wrong_with_a_numbered_checkpoint(directory):
    damage(directory, 10)
    with pytest.raises(checkpoint.CheckpointError, match="/10 is damaged: state/"):
        checkpoint.find(directory, "10")
    for which in ("7", "05", "first", "-5", "٥"):
        with pytest.raises(checkpoint.CheckpointError) as caught:
            checkpoint.find(directory, which)
        assert str(caught.value) == (
            "checkpoint must be last, best or the step of one of those in "
            f"'{directory}' (5, 10, 15), got {which!r}"
        )


def test_a_save_that_is_under_way_is_completed_at_the_end(tmp_path):
    directory = tmp_path / "checkpoints"
    checkpoints = checkpoint.Checkpoints(directory, keep=9)
    checkpoints.save(5, make_state(5), {})
    checkpoints.close()  # without `wait`, as after an error elsewhere
    assert checkpoint.find(directory, "last") == 5


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """After a loss of power it is the old one or the new one, not an empty one."""
    calls, replace = [], os.replace
    monkeypatch.setattr(os, "fsync", lambda _: calls.append("fsync"))
    monkeypatch.setattr(
        os, "replace", lambda *paths: (calls.append("replace"), replace(*paths))
    )
    write_json(tmp_path / "a.json", {})
    assert calls == ["fsync", "replace"]


def test_no_checkpoints(tmp_path):
    for directory in (tmp_path, tmp_path / "missing"):
        assert checkpoint.find(directory, "last") is None
        assert checkpoint.find(directory, "best") is None
        with pytest.raises(checkpoint.CheckpointError, match=r"\(none\), got '5'"):
            checkpoint.find(directory, "5")
    checkpoints = checkpoint.Checkpoints(tmp_path / "new", keep=1)
    checkpoints.close()
    assert (checkpoints.newest, checkpoints.best()) == (None, None)
    assert checkpoints.last_good == "there is no checkpoint yet"


def test_other_files_are_no_checkpoints(directory, capsys):
    for name in ("damaged_20", "20.orbax-checkpoint-tmp", "025", "notes"):
        (directory / name).mkdir()
    assert checkpoint.find(directory, "last") == 15
    assert checkpoint.find(directory, "best") == 10
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("end", ["", "-17"])
def test_what_an_interrupted_save_has_left_is_named(directory, capsys, end):
    left = directory / f"20.orbax-checkpoint-tmp{end}"
    (left / "state").mkdir(parents=True)
    (left / "state" / "file").write_text("x")
    with contextlib.closing(checkpoint.Checkpoints(directory, keep=9)) as checkpoints:
        assert checkpoints.newest == 15
        checkpoints.save(20, make_state(20), {}, score=0.1)
        checkpoints.wait()
    assert checkpoint.find(directory, "last") == 20
    assert restore(directory, 20)["step"] == 20
    warning = f"warning: checkpoint {left} is not complete, and is not used\n"
    assert capsys.readouterr().err == warning


def test_a_copy_without_its_commit_file_is_complete(directory, capsys):
    for step in SCORES:
        (directory / str(step) / "commit_success.txt").unlink()
    assert checkpoint.find(directory, "last") == 15
    with contextlib.closing(checkpoint.Checkpoints(directory, keep=9)) as checkpoints:
        assert checkpoints.newest == 15
    assert restore(directory, 15)["step"] == 15
    assert capsys.readouterr().err == ""


def _as_version_0_1(directory, has_checksums):
    """Give checkpoints the layout that version 0.1 wrote."""
    for step in SCORES:
        folder = directory / str(step)
        (folder / "metadata").rename(folder / ("about" if has_checksums else "default"))
        if has_checksums:
            checksums.write_checksums(folder)
        else:
            (folder / checksums.FILE).unlink()


@pytest.mark.parametrize("has_checksums", [True, False])
def test_checkpoints_of_version_0_1(directory, capsys, has_checksums):
    _as_version_0_1(directory, has_checksums)
    for which, step in (("last", 15), ("best", 15), ("5", 5)):
        with pytest.raises(checkpoint.CheckpointError) as caught:
            checkpoint.find(directory, which)
        assert str(caught.value) == (
            f"checkpoint {directory / str(step)} was written by version 0.1"
        )
    with pytest.raises(checkpoint.CheckpointError, match=r"/15 was written by version"):
        checkpoint.Checkpoints(directory, keep=9)
    assert {path.name for path in directory.iterdir()} == {"5", "10", "15"}
    assert capsys.readouterr().err == ""


def _truncate(content, generator):
    return content[: generator.integers(len(content))]


def _flip_a_bit(content, generator):
    changed = bytearray(content)
    changed[generator.integers(len(content))] ^= 1 << generator.integers(8)
    return bytes(changed)


@pytest.mark.parametrize("change", [_truncate, _flip_a_bit])
@pytest.mark.parametrize("seed", range(10))
def test_damage_never_yields_a_wrong_state(directory, capsys, change, seed):
    generator = np.random.default_rng(seed)
    files = [path for path in (directory / "15").rglob("*") if path.is_file()]
    files = sorted(files, key=lambda path: path.stat().st_size, reverse=True)
    files = [path for path in files if path.stat().st_size]
    # Half of them where the arrays lie, half of them anywhere.
    path = files[0] if seed % 2 else files[generator.integers(len(files))]
    path.write_bytes(change(path.read_bytes(), generator))
    step = checkpoint.find(directory, "last")
    warning = capsys.readouterr().err
    if step == 15:  # a note of Orbax's beside the items, which nothing depends on
        assert path.parent == directory / "15" and path.name != checksums.FILE
    else:
        assert step == 10
        assert f"warning: checkpoint {directory / '15'} is damaged: " in warning
        assert path.name in warning
    chex.assert_trees_all_equal(restore(directory, step), make_state(step))


def test_every_change_of_the_checksums_is_found(directory, capsys):
    file = directory / "15" / checksums.FILE
    content = file.read_bytes()
    for position in range(0, len(content), 5):
        changed = bytearray(content)
        changed[position] ^= 1 << position % 8
        file.write_bytes(changed)
        assert checkpoint.find(directory, "last") == 10, position
        assert "15 is damaged: checksums.json " in capsys.readouterr().err, position
    file.write_bytes(content)
    assert checkpoint.find(directory, "last") == 15


@pytest.mark.parametrize("file", ["checksums.json", "metadata/metadata"])
def test_a_missing_file_is_damage(directory, capsys, file):
    (directory / "15" / file).unlink()
    assert checkpoint.find(directory, "last") == 10
    assert f"15 is damaged: {file} is missing" in capsys.readouterr().err


def test_process_0_decides_and_the_others_are_told(directory, monkeypatch):
    told = []

    def call_on_main(function):
        if told:
            raise ValueError("refused by process 0")

    monkeypatch.setattr(checkpoint.processes, "call_on_main", call_on_main)
    monkeypatch.setattr(checkpoint.processes, "broadcast_from_main", lambda number: 10)
    monkeypatch.setattr(checkpoint_search, "_list_steps", None)  # must not be called
    checkpoints = checkpoint.Checkpoints(directory, keep=9)
    assert (checkpoints.newest, checkpoints.best()) == (10, 10)
    told.append(True)
    with pytest.raises(checkpoint.CheckpointError, match="refused by process 0"):
        checkpoints.best()
    checkpoints.close()


def test_a_save_that_fails_names_the_last_good_checkpoint(directory):
    def refuse():
        raise OSError("the lock is lost")

    checkpoints = checkpoint.Checkpoints(directory, keep=9, check_lock=refuse)
    with pytest.raises(checkpoint.CheckpointError) as caught:
        checkpoints.save(20, make_state(20), {})
    assert str(caught.value) == (
        "the checkpoint of step 20 could not be written: the lock is lost"
    )
    assert checkpoints.last_good == f"the last good checkpoint is {directory / '15'}"
    checkpoints.close()
    assert {path.name for path in directory.iterdir()} == {"5", "10", "15"}
