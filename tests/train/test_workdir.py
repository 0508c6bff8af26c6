"""The run's folder: who may use it, and what a killed run leaves in it."""

import errno
import os

import pytest

from tests.train.tiny import tiny_config
from train_jax.config.config import to_json
from train_jax.output import workdir as wd
from train_jax.output.files import read_json, write_json
from train_jax.output.metrics import append_metrics, truncate_metrics
from train_jax.storage import store


def tiny_fields(changes=None):
    """The tiny config as config.json has it."""
    return to_json(tiny_config(changes))


def test_a_new_folder_gets_the_config(tmp_path):
    folder = tmp_path / "a" / "b"
    wd.check_workdir(folder, tiny_fields(), overwrite=False)
    assert not folder.exists()
    wd.prepare_workdir(folder, tiny_fields())
    written = read_json(folder / wd.CONFIG)
    assert written["model.width"] == 16
    # The same config may go on.
    wd.check_workdir(folder, tiny_fields(), overwrite=False)


def test_another_config_is_refused_and_named(tmp_path):
    wd.prepare_workdir(tmp_path, tiny_fields())
    changed = tiny_fields({"seed": 3, "dataset.data_dir": "/elsewhere"})
    with pytest.raises(ValueError) as caught:
        wd.check_workdir(tmp_path, changed, overwrite=False)
    message = str(caught.value)
    assert "config.seed was 0 and is 3" in message
    assert "data_dir" not in message  # where the data lie may change
    assert "\n" not in message
    wd.check_workdir(tmp_path, changed, overwrite=True)


def test_a_field_that_is_newer_than_the_run_had_its_default():
    now = tiny_fields()
    newer = ("fsdp", "num_seeds", "model.scan", "model.remat")
    before = {k: v for k, v in now.items() if k not in newer}
    assert wd.differences(before, now) == []
    changes = wd.differences(before, now | {"fsdp": True})
    assert changes == ["config.fsdp was False and is True"]
    changes = wd.differences(before, now | {"model.scan": True})
    assert changes == ["config.model.scan was False and is True"]


def test_a_newer_field_of_a_group_is_as_in_the_optimizer():
    now = tiny_fields({"groups.head.params": "head", "optimizer.cooldown_epochs": 1})
    before = {k: v for k, v in now.items() if k != "groups.head.cooldown_epochs"}
    assert wd.differences(before, now) == []


def test_when_to_save_and_what_to_warn_of_may_change():
    changes = {"checkpoint.every_steps": 5, "dataset.allow_overlap": True}
    changes["eval_batch_size"] = 7
    assert wd.differences(tiny_fields(), tiny_fields(changes)) == []


def test_foreign_files_are_never_overwritten(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="holds files but no run"):
            wd.check_workdir(tmp_path, tiny_fields(), overwrite=overwrite)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_overwrite_removes_the_run_and_nothing_else(tmp_path):
    wd.prepare_workdir(tmp_path, tiny_fields())
    (tmp_path / wd.CHECKPOINTS / "20").mkdir(parents=True)
    (tmp_path / wd.SUMMARY).write_text("{}")
    (tmp_path / "notes.txt").write_text("mine")
    wd.prepare_workdir(tmp_path, tiny_fields({"seed": 1}), overwrite=True)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {wd.CONFIG, "notes.txt"}
    assert read_json(tmp_path / wd.CONFIG)["seed"] == 1


def test_overwrite_that_is_interrupted_leaves_no_finished_run(tmp_path, monkeypatch):
    wd.prepare_workdir(tmp_path, tiny_fields())
    (tmp_path / wd.CHECKPOINTS / "20").mkdir(parents=True)
    (tmp_path / wd.SUMMARY).write_text("{}")

    def fail(_):
        raise OSError(errno.EBUSY, "in use")

    monkeypatch.setattr(store, "remove_folder", fail)
    with pytest.raises(OSError, match="in use"):
        wd.prepare_workdir(tmp_path, tiny_fields(), overwrite=True)
    assert not (tmp_path / wd.SUMMARY).exists()


def test_overwrite_empties_a_folder_on_another_disk_and_keeps_the_link(tmp_path):
    disk, workdir = tmp_path / "disk", tmp_path / "run"
    wd.prepare_workdir(workdir, tiny_fields())
    (disk / "20" / "state").mkdir(parents=True)
    (disk / "note").write_text("")
    (workdir / wd.CHECKPOINTS).symlink_to(disk)
    wd.prepare_workdir(workdir, tiny_fields({"seed": 1}), overwrite=True)
    assert (workdir / wd.CHECKPOINTS).is_symlink() and not [*disk.iterdir()]


def test_a_start_that_was_killed_leaves_a_folder_that_can_be_used(tmp_path):
    (tmp_path / "config.json.draft").write_text("{")
    wd.check_workdir(tmp_path, tiny_fields(), overwrite=False)
    wd.prepare_workdir(tmp_path, tiny_fields())
    # Nothing but the config is left when a deletion has just ended.
    (tmp_path / wd.PROFILE).mkdir()
    wd._remove_run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [wd.CONFIG]


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="must be a folder"):
        wd.check_workdir(tmp_path / "file", tiny_fields(), overwrite=False)
    inside = wd.open_workdir(tmp_path / "file" / "run", tiny_fields())
    with pytest.raises(wd.WorkdirError, match="cannot be written"), inside:
        pass


def test_a_config_that_could_not_be_written_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        opened = wd.open_workdir(tmp_path, tiny_fields())
        with pytest.raises(wd.WorkdirError, match="No space left"), opened:
            pass
    assert not any(tmp_path.iterdir())


def test_damaged_config_is_named(tmp_path):
    (tmp_path / wd.CONFIG).write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        wd.check_workdir(tmp_path, tiny_fields(), overwrite=False)


def test_metrics_become_those_of_the_checkpoint(tmp_path):
    path = tmp_path / wd.METRICS
    for step in (5, 10, 10, 15):
        append_metrics(path, {"step": step})
    with path.open("ab") as file:
        file.write(b'{"step": 2\xff')  # killed while it wrote, and damaged
    truncate_metrics(path, [{"step": 5}, {"step": 10}])
    assert path.read_text() == '{"step": 5}\n{"step": 10}\n'


CONSTANT = {"optimizer.schedule": "constant"}
RSQRT = {"optimizer.schedule": "rsqrt"}
COOLED = CONSTANT | {"optimizer.cooldown_epochs": 1.0}


@pytest.mark.parametrize(
    ("before", "now", "extend", "refused"),
    [
        (CONSTANT, CONSTANT | {"num_epochs": 9}, False, None),
        (RSQRT, RSQRT | {"num_epochs": 9}, False, None),
        (COOLED, COOLED | {"num_epochs": 9}, False, "--extend trains it on"),
        ({}, {"num_epochs": 9}, True, None),
        ({"num_steps": 9}, {"num_steps": 10}, True, None),
        ({}, {"num_epochs": 9}, False, "--extend trains it on from the step"),
        ({}, {"num_epochs": 3}, True, "num_epochs was 4 and is 3. Give another"),
        (CONSTANT, CONSTANT | {"num_epochs": 3}, True, "was 4 and is 3. Give another"),
        ({}, {"num_epochs": 9, "seed": 1}, True, "seed was 0 and is 1. Give another"),
        ({}, {"num_steps": 99}, True, "num_steps was None and is 99. Give another"),
        ({"num_steps": 9}, {"num_steps": 9, "num_epochs": 7}, False, None),
    ],
)
def test_a_longer_training_may_go_on(tmp_path, before, now, extend, refused):
    with wd.open_workdir(tmp_path, tiny_fields(before)):
        pass
    (tmp_path / wd.CHECKPOINTS / "20").mkdir(parents=True)
    fields = tiny_fields(now)
    if refused:
        with pytest.raises(ValueError) as caught:
            wd.check_workdir(tmp_path, fields, overwrite=False, extend=extend)
        assert refused in str(caught.value)
        return
    wd.check_workdir(tmp_path, fields, overwrite=False, extend=extend)
    with wd.open_workdir(tmp_path, fields, extend=extend):
        wd.record_config(tmp_path, fields)
    written = read_json(tmp_path / wd.CONFIG)
    length = {name: tiny_fields(before)[name] for name in wd.LENGTH}
    is_longer = wd.differences(tiny_fields(before), fields)
    history = [{"until_step": 20} | length] if is_longer else []
    assert written.pop(wd.HISTORY, []) == history
    assert written == fields
    with wd.open_workdir(tmp_path, fields):  # by now it is the run's own config
        pass


def test_a_summary_counts_if_it_is_of_the_config(tmp_path):
    fields = tiny_fields()
    results = dict.fromkeys(
        ("test_accuracy", "test_loss", "steps", "train_seconds", "device"), 1
    )
    assert wd.read_summary(tmp_path, fields) is None
    for summary, counts in (
        ({}, False),
        (results, False),
        ({"config": fields}, False),
        (results | {"config": tiny_fields({"seed": 1})}, False),
        (results | {"config": fields}, True),
    ):
        write_json(tmp_path / wd.SUMMARY, summary)
        assert wd.read_summary(tmp_path, fields) == (summary if counts else None)


def test_a_config_without_fields_is_that_of_the_defaults(tmp_path):
    model = {k: v for k, v in tiny_fields().items() if k.startswith("model.")}
    write_json(tmp_path / wd.CONFIG, model)
    with pytest.raises(ValueError, match=r"config\.batch_size was 128 and is 64"):
        wd.check_workdir(tmp_path, tiny_fields(), overwrite=False)
    defaults = tiny_fields({"num_epochs": 99})
    write_json(
        tmp_path / wd.CONFIG,
        {k: v for k, v in defaults.items() if k != "num_epochs"},
    )
    with pytest.raises(ValueError, match=r"num_epochs was 10 and is 99\. --extend"):
        wd.check_workdir(tmp_path, defaults, overwrite=False)
