"""A trace of some steps is recorded, and changes nothing."""

import json
from unittest import mock

import jax
import jax.numpy as jnp
import pytest

from benchmarks import trace
from tests.train.tiny import make_tiny, tiny_config, train_tiny
from train_jax.config.config import load_config
from train_jax.devices import processes
from train_jax.output import workdir as wd
from train_jax.run import profiler


def test_a_trace_is_recorded_and_changes_nothing(tmp_path, capsys):
    with mock.patch.object(profiler.Profiler, "__exit__", return_value=None) as leave:
        plain = train_tiny(tmp_path / "plain", {"num_epochs": 2})
    # There a trace that is cut off is written.
    leave.assert_called_once_with(None, None, None)
    run = tmp_path / "run"
    found = train_tiny(run, {"num_epochs": 2, "profile_steps": (2, 6)})
    assert "trace of the steps written to" in capsys.readouterr().out
    assert found["test_loss"] == plain["test_loss"]
    times = ("seconds", "images_per_second")
    lines = [
        [
            {k: v for k, v in json.loads(line).items() if k not in times}
            for line in (folder / wd.METRICS).read_text().splitlines()
        ]
        for folder in (run, tmp_path / "plain")
    ]
    assert lines[0] == lines[1]
    (folder,) = (run / wd.PROFILE).glob("plugins/profile/*")
    names = {path.name.partition(".")[2] for path in folder.iterdir()}
    assert {"xplane.pb", "trace.json.gz"} <= names
    assert trace.main([str(run)]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert "operation" in head and len(rows) > 10
    # What is recorded is no part of what is computed.
    finished = train_tiny(run, {"num_epochs": 2})
    assert finished["steps"] == found["steps"]
    assert "this run is finished already" in capsys.readouterr().out


def test_the_first_of_several_processes_records(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "is_main", lambda: False)
    with profiler.Profiler(tmp_path, (0, 1)) as recorder:
        recorder.reach(0)
        recorder.reach(1)
    assert not list(tmp_path.iterdir())


def test_a_trace_that_is_cut_off_is_written(tmp_path):
    with profiler.Profiler(tmp_path, (0, 100)) as recorder:
        recorder.reach(0)
        jax.block_until_ready(jnp.ones(3) + 1)
    assert list(tmp_path.glob("plugins/profile/*/*.xplane.pb"))


def test_seconds_of_nested_operations_count_once():
    event = {"pid": 1, "tid": 1, "args": {"hlo_op": "x"}}
    events = [
        event | {"name": "outer", "ts": 0, "dur": 10e6},
        event | {"name": "inner", "ts": 1e6, "dur": 2e6},
        event | {"name": "inner", "ts": 4e6, "dur": 3e6},
        event | {"name": "other", "ts": 0, "dur": 1e6, "tid": 2},
        {"name": "not XLA's", "ts": 0, "dur": 1e6},
        {},
    ]
    rows = trace.summarize(events)
    assert rows == [("outer", 1, 5.0), ("inner", 2, 5.0), ("other", 1, 1.0)]


def test_a_folder_without_a_trace_is_one_line(tmp_path, capsys):
    assert trace.main([str(tmp_path)]) == 2
    assert "holds no perfetto_trace.json.gz" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["(5, 5)", "(-1, 5)", "5", "(1, 2, 3)", "(0.0, 5)"])
def test_wrong_steps_are_named(text):
    with pytest.raises(ValueError, match="profile_steps must be two numbers of steps"):
        load_config("vit_digits", {"profile_steps": text})
    assert tiny_config({"profile_steps": (0, 5)}).profile_steps == (0, 5)


def test_a_trace_has_to_begin_in_the_training():
    changes = {"num_steps": 5, "profile_steps": (5, 9)}
    with pytest.raises(ValueError, match=r"must begin before step 5, .* got \(5, 9\)"):
        make_tiny(changes)
