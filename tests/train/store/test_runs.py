"""Runs in an object store: what they leave, kills, refused writes."""

import contextlib
import itertools
import json
import re
import signal

import jax
import numpy as np
import pytest

from tests.train.nursery import Nursery
from tests.train.store.runs import CHANGES, COMMITTED, list_names
from tests.train.test_processes import CONFIG, start_two
from tests.train.tiny import (
    TINY,
    compile_once,  # noqa: F401 (a fixture)
    last_state,
    train_tiny,
)
from train_jax.config.config import load_config
from train_jax.output import workdir as wd
from train_jax.run import experiment
from train_jax.run.failures import Failed
from train_jax.storage import store as stores


def without_times(record):
    timing = ("seconds", "images_per_second", "train_seconds")
    return {k: v for k, v in record.items() if k not in timing}


def without_plots(names):
    return [name for name in names if not name.startswith(f"{wd.PLOTS}/")]


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
    (unfinished / wd.PLOTS / "old.png").write_text("old")
    train_tiny(unfinished, CHANGES, overwrite=True)
    assert_same_bits(unfinished, whole)
    assert list_names(unfinished) == without_plots(list_names(whole))


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
    with contextlib.closing(nursery):
        nursery.start(folder / "whole")
        assert nursery.wait() == 0, nursery.output
        workdir, generator = folder / "run", np.random.default_rng(0)
        killed_at = {}  # which kill: the name of the object

        def kill_at(kill, number, is_written):
            counter = itertools.count(1)

            def before_write(name):  # called by several threads at once
                if kill in killed_at or next(counter) < number:
                    return None
                try:
                    nursery.send(signal.SIGKILL)
                except ProcessLookupError:  # a late request of the process before
                    return None
                killed_at[kill] = name
                return None if is_written else 503

            return before_write

        for kill in range(10):
            # A start writes some 60 objects for each of six checkpoints; the first one
            # is complete when the first start is killed.
            number = generator.integers(1, 60) + 80 * (kill == 0)
            store.before_write = kill_at(kill, number, kill % 2 == 0)
            nursery.start(workdir)
            assert nursery.wait() == -signal.SIGKILL, nursery.output
            assert "Traceback" not in nursery.output
        store.before_write = lambda name: None
        nursery.start(workdir)
        assert nursery.wait() == 0, nursery.output
        assert "resuming after step" in nursery.output
    folders = {name.rpartition("/")[0] for name in killed_at.values()}
    assert len(folders) > 3, killed_at
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


# The client's buffer of a refused upload may be freed while it is still read.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
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
def test_two_processes_write_one_set_of_files(folder, whole, tmp_path, monkeypatch):
    for name in ("_plot", "print_layers"):
        monkeypatch.setattr(experiment, name, lambda *_: None)
    outputs, both = start_two(folder, tmp_path, CHANGES)
    fields = {field: str(value) for field, value in (TINY | CHANGES).items()}
    config = load_config(CONFIG, fields)
    one = experiment.train_and_evaluate(config, tmp_path / "one")
    assert [p.wait() for p in both] == [0, 0], [x.read_text() for x in outputs]
    events = stores.list_files(folder / wd.TENSORBOARD)
    assert len(events) == 1
    of_processes = r"process_\d|ocdbt"
    found, expected = (
        [x for x in list_names(y) if not re.search(of_processes, x)]
        for y in (folder, whole)
    )
    assert found == without_plots(expected)
    two = json.loads((folder / wd.SUMMARY).read_text())
    np.testing.assert_allclose(two["test_loss"], one["test_loss"], rtol=1e-5)
