"""Reading from an object store, locks there, and what cannot be opened."""

import json
import re
import shutil
import sys
import types

import jax
import numpy as np
import pytest

from tests.train.data.tiny_set import NUM_TEST, NUM_TRAIN, encoded, write_set
from tests.train.store.runs import BUCKET, CHANGES, list_names
from tests.train.tiny import train_tiny
from train_jax import ablate, data, evaluate, explain, export, predict
from train_jax.output import checkpoint, checkpoint_search, lock
from train_jax.output import workdir as wd
from train_jax.run import profiler
from train_jax.storage import store as stores
from train_jax.storage.paths import cache_folder


@pytest.fixture(scope="module")
def whole(store):
    """A short run, without plots."""
    workdir = stores.any_path(f"{BUCKET}/whole", "folder")
    train_tiny(workdir, CHANGES | {"num_epochs": 2})
    return workdir


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


def test_the_commands_read_a_run(whole, store, capsys):
    workdir = ["--workdir", str(whole)]
    assert evaluate.main(workdir) == 0
    assert "vit, step 10, on " in capsys.readouterr().out
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
    f"{BUCKET}/empty": f"workdir '{BUCKET}/empty' does not exist",
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


def test_a_store_that_fails_later_is_one_line(folder, monkeypatch, capsys):
    from gcsfs.retry import HttpError

    def refuse(directory):
        raise HttpError({"code": 503, "message": "try later"})

    monkeypatch.setattr(checkpoint_search, "_list_steps", refuse)
    expected = f"workdir '{folder}': try later, 503"
    assert predict.main(["--workdir", str(folder), "picture.png"]) == 2
    assert expected in capsys.readouterr().err
    with pytest.raises(wd.WorkdirError, match=re.escape(expected)):
        train_tiny(folder)


def test_without_the_client_it_is_named(store, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    assert predict.main(["--workdir", f"{BUCKET}/run", "picture.png"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert 'needs gcsfs: pip install "vit-resnet-jax[gcs]"' in line


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
    assert checkpoint.find(directory, "last") == 10
    assert checkpoint.find(directory, "5") == 5
