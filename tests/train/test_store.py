"""Runs in an object store: what they leave, kills, errors; the commands that read."""

import itertools
import json
import re
import shutil
import signal
import sys
import types

import jax
import numpy as np
import pytest
from etils import epath

from tests.train import fake_gcs
from tests.train.data.tiny_set import NUM_TEST, NUM_TRAIN, encoded, write_set
from tests.train.nursery import Nursery
from tests.train.test_processes import CONFIG, start_two
from tests.train.tiny import TINY, last_state, train_tiny
from train_jax import ablate, data, evaluate, explain, export, predict
from train_jax.config.config import load_config
from train_jax.devices import store as stores
from train_jax.devices.folders import cache_folder
from train_jax.output import checkpoint, lock
from train_jax.output import workdir as wd
from train_jax.run import profiler
from train_jax.run.experiment import train_and_evaluate
from train_jax.run.failures import Failed

BUCKET = f"gs://{fake_gcs.BUCKET}"
CHANGES = {"num_epochs": 6, "checkpoint.every_epochs": 1, "model.dropout_rate": 0.1}

# Names that hold a time or a checksum.
VARIABLE = r"/(d/[0-9a-f]{32}|events.*)$"
COMMITTED = "commit_success.txt"


@pytest.fixture(scope="module")
def store():
    """A store with an empty bucket, to which the clients of this process connect."""
    # As if a path had been used before: etils.epath then keeps to TensorFlow.
    epath.Path("local").exists()
    with fake_gcs.serve() as store, pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment().items():
            patch.setenv(name, value)
        yield store


@pytest.fixture
def folder(store, request):
    """A folder of the store for a test of its own."""
    store.before_write = lambda name: None
    name = re.sub(r"\W+", "_", request.node.name)
    return stores.any_path(f"{BUCKET}/{name}", "folder")


@pytest.fixture(scope="module")
def whole(store):
    """A run that nothing happened to."""
    workdir = stores.any_path(f"{BUCKET}/whole", "folder")
    train_tiny(workdir, CHANGES, has_plots=True)
    return workdir


@pytest.fixture
def unfinished(folder, store, whole):
    """A copy of that run, without its summary."""
    source, target = (str(x).removeprefix(f"{BUCKET}/") for x in (whole, folder))
    for name in list(store.objects):
        if name.startswith(source + "/") and not name.endswith(wd.SUMMARY):
            store.put(name.replace(source, target, 1), store.objects[name], None)
    return folder


def without_times(record):
    timing = ("seconds", "images_per_second", "train_seconds")
    return {k: v for k, v in record.items() if k not in timing}


def list_names(workdir):
    """The names of a run's files, without what varies and what marks a save's end."""
    names = [str(x.relative_to(workdir)) for x in stores.list_files(workdir)]
    return sorted({re.sub(VARIABLE, "", x) for x in names if COMMITTED not in x})


def assert_same_bits(workdir, expected):
    """Compare two runs: metrics, summary, last state."""
    lines, expected_lines = (
        [without_times(json.loads(x)) for x in text.splitlines()]
        for text in ((x / wd.METRICS).read_text() for x in (workdir, expected))
    )
    assert lines == expected_lines
    summaries = [json.loads((x / wd.SUMMARY).read_text()) for x in (workdir, expected)]
    assert without_times(summaries[0]) == without_times(summaries[1])
    states = [jax.tree.leaves(last_state(x, CHANGES)) for x in (workdir, expected)]
    for leaf, expected_leaf in zip(*states, strict=True):
        np.testing.assert_array_equal(leaf, expected_leaf)


def test_a_run_leaves_what_it_leaves_on_a_disk(whole, tmp_path):
    train_tiny(tmp_path / "run", CHANGES, has_plots=True)
    assert_same_bits(whole, tmp_path / "run")
    assert list_names(whole) == list_names(tmp_path / "run")


def test_a_finished_run_prints_its_summary(whole, capsys):
    summary = train_tiny(whole, CHANGES)
    assert "this run is finished already" in capsys.readouterr().out
    assert summary == json.loads((whole / wd.SUMMARY).read_text())


def test_overwrite_deletes_the_run_before(unfinished, whole):
    (unfinished / "plots" / "old.png").write_text("old")
    train_tiny(unfinished, CHANGES, has_plots=True, overwrite=True)
    assert_same_bits(unfinished, whole)
    assert list_names(unfinished) == list_names(whole)


@pytest.mark.slow  # twelve starts
def test_killed_ten_times(store, folder, tmp_path):
    """At the write of an object, which then exists or does not."""
    nursery = Nursery(
        tmp_path,
        TINY | CHANGES,
        cache=tmp_path / "cache",
        variables=store.environment(),
        modules=["gcsfs"],
    )
    nursery.start(folder / "whole", has_plots=True)
    assert nursery.wait() == 0, nursery.output
    workdir, killed_at = folder / "run", []
    generator = np.random.default_rng(0)

    def kill_at(number, is_written):
        counter = itertools.count(1)

        def before_write(name):
            if next(counter) != number:
                return None
            nursery.send(signal.SIGKILL)
            killed_at.append(name)
            return None if is_written else 503

        return before_write

    for kill in range(10):
        # A start writes some 60 objects for each of six checkpoints.
        store.before_write = kill_at(generator.integers(1, 60), kill % 2 == 0)
        nursery.start(workdir)
        assert nursery.wait() == -signal.SIGKILL, nursery.output
        assert "Traceback" not in nursery.output
    store.before_write = lambda name: None
    nursery.start(workdir, has_plots=True)
    assert nursery.wait() == 0, nursery.output
    nursery.close()
    assert "resuming after step" in nursery.output
    assert len({name.rpartition("/")[0] for name in killed_at}) > 3, killed_at
    assert_same_bits(workdir, folder / "whole")
    assert not [x for x in list_names(workdir) if "lock." in x]


def test_an_unfinished_save_is_named_and_not_used(unfinished, whole, capsys):
    (unfinished / wd.CHECKPOINTS / "30" / COMMITTED).unlink()
    (unfinished / wd.CHECKPOINTS / "7" / "state" / "_METADATA").write_text("{}")
    train_tiny(unfinished, CHANGES)
    printed = capsys.readouterr()
    assert f"{unfinished}/checkpoints/30 is not complete, and is not" in printed.err
    assert f"{unfinished}/checkpoints/7 is not complete, and is not" in printed.err
    assert not (unfinished / wd.CHECKPOINTS / "7").exists()
    assert "resuming after step 25 of 30" in printed.out
    assert_same_bits(unfinished, whole)


def test_a_damaged_checkpoint_is_renamed(unfinished, store, whole, capsys):
    files = stores.list_files(unfinished / wd.CHECKPOINTS / "30" / "state")
    largest = max(files, key=lambda path: files[path])
    largest.write_bytes(largest.read_bytes()[:-1])
    train_tiny(unfinished, CHANGES)
    printed = capsys.readouterr()
    assert f"{unfinished}/checkpoints/30 is damaged: state/" in printed.err
    assert "resuming after step 25 of 30" in printed.out
    assert (unfinished / wd.CHECKPOINTS / "damaged_30").is_dir()
    assert_same_bits(unfinished, whole)


def test_a_folder_in_use_is_refused(folder):
    held = lock.acquire(folder)
    with pytest.raises(wd.WorkdirError, match=f"{folder}' is in use by process"):
        train_tiny(folder)
    held.close()
    assert list_names(folder) == []


def test_only_one_of_two_starts_creates_the_lock(folder):
    assert stores.create_file(folder / "lock.1", b"first")
    assert not stores.create_file(folder / "lock.1", b"second")
    assert (folder / "lock.1").read_text() == "first"


def test_what_another_process_writes_is_seen(folder, store):
    (folder / "first").write_text("x")
    assert [path.name for path in folder.iterdir()] == ["first"]
    store.put(f"{folder.name}/second", b"y", None)
    assert [path.name for path in folder.iterdir()] == ["first", "second"]
    assert stores.list_files(folder) == {folder / "first": 1, folder / "second": 1}


def test_a_lock_that_is_taken_over_stops_the_writing(folder):
    held = lock.acquire(folder)
    other = json.loads((folder / "lock.1").read_text()) | {"token": "x", "pid": 7}
    (folder / "lock.1").write_text(json.dumps(other))
    with pytest.raises(lock.LostError, match=r"process 7 on host .* has taken over"):
        held.check()
    held.close()
    assert (folder / "lock.1").exists()


def test_a_refused_write_ends_the_run_in_one_line(unfinished, store, whole):
    (unfinished / wd.CHECKPOINTS / "30" / COMMITTED).unlink()
    store.before_write = lambda name: 403 if "/30/state/" in name else None
    with pytest.raises(Failed, match=r"step 30 could not be written: .*/25$") as error:
        train_tiny(unfinished, CHANGES)
    assert "\n" not in str(error.value)
    store.before_write = lambda name: 403 if name.endswith(wd.METRICS) else None
    with pytest.raises(Failed, match=r"metrics.jsonl.*; the last good .*/25$"):
        train_tiny(unfinished, CHANGES)
    store.before_write = lambda name: None
    train_tiny(unfinished, CHANGES)
    assert_same_bits(unfinished, whole)


@pytest.mark.slow  # two processes
def test_two_processes_write_one_set_of_files(folder, whole, tmp_path):
    outputs, both = start_two(folder, tmp_path, CHANGES)
    assert [p.wait() for p in both] == [0, 0], [x.read_text() for x in outputs]
    events = stores.list_files(folder / wd.TENSORBOARD)
    assert len(events) == 1
    of_processes = r"process_\d|ocdbt"
    found, expected = (
        [x for x in list_names(y) if not re.search(of_processes, x)]
        for y in (folder, whole)
    )
    assert found == expected
    fields = {field: str(value) for field, value in (TINY | CHANGES).items()}
    one = train_and_evaluate(load_config(CONFIG, fields), tmp_path / "one")
    two = json.loads((folder / wd.SUMMARY).read_text())
    np.testing.assert_allclose(two["test_loss"], one["test_loss"], rtol=1e-5)


def test_the_commands_read_a_run(whole, store, capsys):
    workdir = ["--workdir", str(whole)]
    assert evaluate.main(workdir) == 0
    assert "vit, step 30, on " in capsys.readouterr().out
    assert explain.main([*workdir, "--images", "3"]) == 0
    assert f"{whole}/plots/explain_3.png" in capsys.readouterr().out
    assert (whole / "plots" / "explain_3.png").read_bytes().startswith(b"\x89PNG")
    assert export.main([*workdir, "--format", "safetensors", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["files"] == [f"{whole}/export/model.safetensors"]
    assert len((whole / "export/model.safetensors").read_bytes()) == result["bytes"]
    for name in ("plots/explain_3.png", "export/model.safetensors"):
        (whole / name).unlink()


def test_training_starts_from_a_run_in_a_store(whole, tmp_path, capsys):
    train_tiny(tmp_path, {"init_from": str(whole), "num_epochs": 1})
    assert (tmp_path / wd.SUMMARY).exists()


# gcsfs sends what has more than a MiB in one piece.
@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
def test_a_trace_is_copied(folder):
    with profiler.Profiler(folder, (0, 1)) as recorder:
        recorder.reach(0)
        jax.block_until_ready(jax.numpy.ones(3) + 1)
        recorder.reach(1)
    names = [path.name for path in stores.list_files(folder)]
    assert "perfetto_trace.json.gz" in names


REFUSED = {
    "s3://bucket/run": "--workdir must be a path on this machine or gs://BUCKET/FOLDER",
    BUCKET: f"--workdir must be gs://BUCKET/FOLDER, got '{BUCKET}'",
    "gs://other/run": "--workdir 'gs://other/run': there is no bucket 'other'",
    f"{BUCKET}/empty": f"--workdir '{BUCKET}/empty' holds no checkpoint",
}


@pytest.mark.parametrize("workdir", REFUSED)
def test_what_cannot_be_opened_is_one_line(store, workdir, capsys):
    assert predict.main(["--workdir", workdir, "picture.png"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert REFUSED[workdir] in line


def test_a_store_that_does_not_answer_is_one_line(store, monkeypatch, capsys):
    from gcsfs.retry import HttpError

    def refuse(bucket):
        raise HttpError({"code": 401, "message": "Anonymous caller\nhas no access"})

    client = types.SimpleNamespace(exists=refuse)
    monkeypatch.setattr(stores, "_filesystem", lambda: client)
    assert predict.main(["--workdir", f"{BUCKET}/run", "picture.png"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("cannot be opened: Anonymous caller has no access, 401")


def test_without_the_client_it_is_named(store, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    assert predict.main(["--workdir", f"{BUCKET}/run", "picture.png"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "needs gcsfs: pip install 'vit-resnet-jax[gcs]'" in line


def test_ablate_asks_for_a_folder_of_this_machine(store, capsys):
    with pytest.raises(SystemExit, match="2"):
        ablate.main(["--config", "vit_digits", "--workdir", f"{BUCKET}/run"])
    assert "--workdir must be a path on this machine" in capsys.readouterr().err


def test_a_prepared_set_is_copied_once(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    name, root = "tiny", tmp_path / "data"
    examples = {"train": encoded(NUM_TRAIN), "test": encoded(NUM_TEST)}
    write_set(root / name / "1.0.0", examples)
    for file in stores.list_files(root):
        (folder / str(file.relative_to(root))).write_bytes(file.read_bytes())
    expected = data.load(name, "train", data_dir=str(root))
    found = data.load(name, "train", data_dir=str(folder))
    np.testing.assert_array_equal(found.image_BHWC, expected.image_BHWC)
    np.testing.assert_array_equal(found.label_B, expected.label_B)
    assert f"copying {folder}/" in capsys.readouterr().err
    data.load(name, "test", data_dir=str(folder))
    assert capsys.readouterr().err == ""

    (copy,) = (tmp_path / "cache").rglob("dataset_info.json")
    copy.write_text("cut")
    data.load(name, "test", data_dir=str(folder))
    assert "copying" in capsys.readouterr().err

    with pytest.raises(ValueError, match="'mnist' is not prepared in 'gs://"):
        data.load("mnist", "train", data_dir=str(folder))
    shutil.rmtree(cache_folder() / "tfds")
    usage = types.SimpleNamespace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match="XDG_CACHE_HOME names another folder"):
        data.load(name, "train", data_dir=str(folder))


def test_a_kept_checkpoint_is_restored(whole):
    directory = whole / wd.CHECKPOINTS
    assert checkpoint.find(directory, "last") == 30
    assert checkpoint.find(directory, "25") == 25
