"""Whole runs: what they leave behind, and that an interrupted one loses nothing."""

import dataclasses
import json
import shutil

import chex
import jax
import numpy as np
import pytest

from tests.train.tiny import (
    RESNET,
    SMALL_RESNET,
    compile_once,  # noqa: F401 (a fixture)
    last_state,
    make_tiny,
    tiny_config,
    train_tiny,
)
from train_jax.output import checkpoint
from train_jax.output import workdir as wd
from train_jax.output.checkpoint_search import METRICS
from train_jax.output.files import read_json
from train_jax.run import experiment, setup
from train_jax.run.checkpointing import SaveSchedule
from train_jax.run.evaluator import Evaluator
from train_jax.run.failures import Failed, Stopped
from train_jax.run.splits import load_dataset
from train_jax.tasks import Classification


def records(workdir):
    """The lines of metrics.jsonl, without durations."""
    lines = (workdir / wd.METRICS).read_text().splitlines()
    timing = ("seconds", "images_per_second")
    return [
        {k: v for k, v in json.loads(line).items() if k not in timing} for line in lines
    ]


CHANGES = {
    "model.dropout_rate": 0.1,
    "augment.crop_padding": 1,
    "ema_decay": 0.9,
    "optimizer.schedule": "linear",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of an uninterrupted run, and its summary."""
    workdir = tmp_path_factory.mktemp("run")
    return workdir, train_tiny(workdir, CHANGES, has_plots=True)


def test_a_run_leaves_what_it_promises(finished):
    workdir, summary = finished
    left = {path.name for path in workdir.iterdir()}
    assert left == {
        *(wd.CONFIG, wd.METRICS, wd.SUMMARY),
        *(wd.CHECKPOINTS, wd.TENSORBOARD, wd.PLOTS),
    }
    assert summary == read_json(workdir / wd.SUMMARY)
    assert summary["steps"] == 20
    assert summary["num_params"] == 3_850
    assert summary["versions"]["jax"] == jax.__version__
    lines = records(workdir)
    assert [line["step"] for line in lines] == [5, 10, 15, 20]
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]
    assert lines[-1]["val_accuracy"] == summary["val_accuracy"]
    pictures = {path.name for path in (workdir / wd.PLOTS).iterdir()}
    assert pictures == {
        "curves.png",
        "confusion_matrix.png",
        "misclassified.png",
        "attention.png",
    }
    assert any((workdir / wd.TENSORBOARD).iterdir())


def test_summary_counts_the_whole_test_split(finished):
    workdir, summary = finished
    parts, state = make_tiny(CHANGES), last_state(workdir, CHANGES)
    image = parts.test.image_BHWC.astype(np.float32) / 255
    image = (image - parts.task.mean[0]) / parts.task.std[0]
    logits = jax.jit(parts.model.apply)(state.eval_variables, image)
    hits = np.asarray(logits).argmax(axis=1) == parts.test.label_B
    np.testing.assert_allclose(summary["test_accuracy"], hits.mean(), atol=1e-9)


def test_a_finished_run_is_not_trained_again(finished, monkeypatch):
    workdir, summary = finished
    # It would fail if it were called.
    monkeypatch.setattr("train_jax.run.experiment.set_up", None)
    assert train_tiny(workdir, CHANGES) == summary


def assert_same_run(workdir, expected):
    """Compare two folders: the last state, bit for bit, and the metrics."""
    chex.assert_trees_all_equal(
        last_state(workdir, CHANGES), last_state(expected, CHANGES)
    )
    assert records(workdir) == records(expected)


class AfterSteps:
    """Asks a run to stop after a number of steps."""

    def __init__(self, count):
        self.count = count

    def __call__(self):
        self.count -= 1
        return self.count <= 0


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The folder of a run that was stopped after step 2."""
    workdir = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr("train_jax.run.trainer._SECONDS_BETWEEN_REPORTS", 0.0)
        train_tiny(workdir, CHANGES, should_stop=AfterSteps(2))
    return workdir


def test_stopped_at_any_step_it_equals_the_uninterrupted_run(
    finished, tmp_path, monkeypatch
):
    uninterrupted, summary = finished
    # Look at the metrics after every step, to be able to stop there.
    monkeypatch.setattr("train_jax.run.trainer._SECONDS_BETWEEN_REPORTS", 0.0)
    done = 0
    for steps in (1, 2, 2, 3, 1):  # the third is at the end of an epoch
        done += steps
        with pytest.raises(Stopped, match=f"stopped after step {done} of 20"):
            train_tiny(tmp_path, CHANGES, should_stop=AfterSteps(steps))
    again = train_tiny(tmp_path, CHANGES)
    assert_same_run(tmp_path, uninterrupted)
    assert again["test_loss"] == summary["test_loss"]


def test_where_a_run_was_stopped_does_not_choose_the_best(tmp_path, monkeypatch):
    monkeypatch.setattr("train_jax.run.trainer._SECONDS_BETWEEN_REPORTS", 0.0)
    with pytest.raises(Stopped):  # at the end of an epoch whose checkpoint isn't due
        changes = CHANGES | {"checkpoint.every_epochs": 4}
        train_tiny(tmp_path, changes, should_stop=AfterSteps(5))
    saved = tmp_path / wd.CHECKPOINTS / "5" / METRICS / "metrics"
    assert json.loads(saved.read_text()) == {"score": checkpoint.NOT_SCORED}


def test_an_epoch_that_is_resumed_counts_its_seconds_before(
    stopped, tmp_path, monkeypatch
):
    run = shutil.copytree(stopped, tmp_path / "run")
    monkeypatch.setattr("train_jax.run.trainer._SECONDS_BETWEEN_REPORTS", 0.0)
    read = experiment.read_newest_metadata

    def read_as_if_slow(*args, **kwargs):
        progress = read(*args, **kwargs)
        assert 0 < progress["epoch_seconds"] < 1000
        return progress | {"epoch_seconds": 1000.0}

    monkeypatch.setattr(experiment, "read_newest_metadata", read_as_if_slow)
    train_tiny(run, CHANGES)
    lines = [json.loads(x) for x in (run / wd.METRICS).read_text().splitlines()]
    assert [line["seconds"] > 1000 for line in lines] == [True, False, False, False]


def test_a_run_that_breaks_off_equals_the_uninterrupted_run(
    finished, tmp_path, monkeypatch
):
    uninterrupted, _ = finished

    def fail(*_):
        raise ZeroDivisionError  # a mistake in the program, say

    monkeypatch.setattr(SaveSchedule, "is_due", lambda _, step: step < 15 or fail())
    with pytest.raises(ZeroDivisionError):
        train_tiny(tmp_path, CHANGES)
    monkeypatch.undo()
    assert len(records(tmp_path)) == 3  # one more than was saved
    train_tiny(tmp_path, CHANGES)
    assert_same_run(tmp_path, uninterrupted)


def test_batchnorm_resumes_and_models_without_attention_draw_none(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(
        "train_jax.run.model.create_model", lambda *_, **__: SMALL_RESNET
    )
    changes = RESNET | {"num_steps": 7, "checkpoint.every_epochs": 1}
    summary = train_tiny(tmp_path, changes, has_plots=True)
    assert summary["steps"] == 7
    assert [line["step"] for line in records(tmp_path)] == [5, 7]
    assert not (tmp_path / wd.PLOTS / "attention.png").exists()

    state = last_state(tmp_path, changes)
    (tmp_path / wd.SUMMARY).unlink()
    again = train_tiny(tmp_path, changes)  # only the evaluation is left to do
    assert again["test_loss"] == summary["test_loss"]
    chex.assert_trees_all_equal(last_state(tmp_path, changes), state)


def test_a_constant_schedule_goes_on_as_if_it_had_never_ended(tmp_path):
    constant = CHANGES | {"optimizer.schedule": "constant"}
    train_tiny(tmp_path / "longer", constant | {"num_epochs": 3})
    train_tiny(tmp_path / "run", constant | {"num_epochs": 2})
    extended = train_tiny(tmp_path / "run", constant | {"num_epochs": 3})
    assert extended["steps"] == 15
    assert_same_run(tmp_path / "run", tmp_path / "longer")


def test_an_extended_run_enters_the_longer_schedule_where_it_stands(finished, tmp_path):
    uninterrupted, _ = finished
    train_tiny(tmp_path, CHANGES | {"num_epochs": 2})
    with pytest.raises(ValueError, match="--extend trains it on from the step where"):
        train_tiny(tmp_path, CHANGES)
    summary = train_tiny(tmp_path, CHANGES, extend=True)
    assert summary["steps"] == 20
    rates = [line["learning_rate"] for line in records(tmp_path)]
    whole = [line["learning_rate"] for line in records(uninterrupted)]
    assert rates[2:] == whole[2:] and rates[1] < whole[1]
    history = read_json(tmp_path / wd.CONFIG)[wd.HISTORY]
    assert history == [{"until_step": 10, "num_epochs": 2, "num_steps": None}]
    assert train_tiny(tmp_path, CHANGES) == summary


def test_a_run_that_ended_within_an_epoch_counts_its_seconds_once(tmp_path):
    constant = {"optimizer.schedule": "constant"}
    train_tiny(tmp_path, constant | {"num_steps": 7})
    summary = train_tiny(tmp_path, constant | {"num_steps": 12})
    lines = (tmp_path / wd.METRICS).read_text().splitlines()
    steps = {line["step"]: line["seconds"] for line in map(json.loads, lines)}
    assert list(steps) == [5, 7, 10, 12] and steps[10] > steps[7]
    np.testing.assert_allclose(
        summary["train_seconds"], steps[5] + steps[10] + steps[12]
    )


def test_the_test_split_is_read_with_the_best_checkpoint(tmp_path, monkeypatch):
    changes = {"num_epochs": 3, "checkpoint.keep": 1, "test_checkpoint": "best"}
    parts = make_tiny(changes)
    evaluate, accuracies = Evaluator.__call__, iter((0.5, 0.9, 0.7))

    def pretend(evaluator, variables, split):
        result = evaluate(evaluator, variables, split)
        if len(split) == len(parts.val):
            accuracy_R = np.array([next(accuracies)])
            result = dataclasses.replace(result, accuracy_R=accuracy_R)
        return result

    monkeypatch.setattr(Evaluator, "__call__", pretend)
    summary = train_tiny(tmp_path, changes)
    monkeypatch.undo()
    assert summary["test_step"] == 10 and summary["val_accuracy"] == 0.9
    folder = tmp_path / wd.CHECKPOINTS
    best = checkpoint.restore(folder, 10, parts.abstract_state)
    test = parts.evaluator(best.eval_variables, parts.test)
    assert summary["test_loss"] == test.loss_R.mean()

    assert [checkpoint.find(folder, which) for which in ("last", "best")] == [15, 10]
    assert checkpoint.find(folder, "10") == 10
    with pytest.raises(checkpoint.CheckpointError) as caught:
        checkpoint.find(folder, "12")
    assert "must be last, best or the step of one of those" in str(caught.value)
    assert "(10, 15), got '12'" in str(caught.value)


def test_of_several_runs_the_best_one_that_was_tested_is_drawn(tmp_path, monkeypatch):
    changes = {"num_epochs": 2, "num_seeds": 2, "test_checkpoint": "best"}
    parts = make_tiny(changes)
    evaluate, accuracies = Evaluator.__call__, iter(([0.9, 0.5], [0.1, 0.2]))
    drawn = []

    def pretend(evaluator, variables, split):
        result = evaluate(evaluator, variables, split)
        if len(split) == len(parts.val):
            accuracy_R = np.array(next(accuracies))
            result = dataclasses.replace(result, accuracy_R=accuracy_R)
        return result

    monkeypatch.setattr(Evaluator, "__call__", pretend)
    monkeypatch.setattr(experiment.plots, "plot_curves", lambda *_: None)
    monkeypatch.setattr(Classification, "plot", lambda *args: drawn.append(args[2]))
    summary = train_tiny(tmp_path, changes, has_plots=True)
    assert summary["test_step"] == 5
    best = checkpoint.restore(tmp_path / wd.CHECKPOINTS, 5, parts.abstract_state)
    chex.assert_trees_all_equal(drawn[0], parts.runs.select(best.eval_variables, 0))


def test_a_refused_extension_leaves_the_finished_run(tmp_path, monkeypatch):
    constant = {"optimizer.schedule": "constant", "num_epochs": 1}
    summary = train_tiny(tmp_path, constant)
    config = read_json(tmp_path / wd.CONFIG)
    train, val, test = load_dataset(tiny_config().dataset)
    changed = (train, val, test[:80])
    monkeypatch.setattr(setup, "load_dataset", lambda *_, **__: changed)
    with pytest.raises(Failed, match="is of other data: num_examples had"):
        train_tiny(tmp_path, constant | {"num_epochs": 2})
    assert read_json(tmp_path / wd.CONFIG) == config
    assert train_tiny(tmp_path, constant) == summary


def test_the_order_of_the_first_epoch_is_compiled_before_it_starts():
    feed = make_tiny().trainer.feed
    assert feed._order.cache_info().misses == 1
    list(feed(0, 1))
    assert feed._order.cache_info().misses == 1


@pytest.mark.parametrize(
    "name", ["num_examples", "image_shape", "class_names", "pictures"]
)
def test_a_run_does_not_go_on_with_other_data(stopped, tmp_path, monkeypatch, name):
    run = shutil.copytree(stopped, tmp_path / "run")
    step = checkpoint.find(run / wd.CHECKPOINTS, "last")
    train, val, test = load_dataset(tiny_config(CHANGES).dataset)
    if name == "num_examples":
        test = test[:80]
    elif name == "image_shape":
        train, val, test = (
            dataclasses.replace(it, image_BHWC=it.image_BHWC.repeat(2, axis=2))
            for it in (train, val, test)
        )
    elif name == "pictures":
        val = dataclasses.replace(val, files_checksum=7)
    else:
        names = tuple(reversed(train.class_names))
        train = dataclasses.replace(train, class_names=names)
    monkeypatch.setattr(setup, "load_dataset", lambda *_, **__: (train, val, test))
    with pytest.raises(Failed, match=f"checkpoint {step} is of other data: {name}"):
        train_tiny(run, CHANGES)


def saved_steps(workdir):
    """The steps of the checkpoints in a run's folder."""
    names = [path.name for path in (workdir / wd.CHECKPOINTS).iterdir()]
    return sorted(int(name) for name in names if name.isdecimal())


def test_checkpoints_between_the_ends_of_epochs(finished, tmp_path, monkeypatch):
    uninterrupted, _ = finished
    how = {"checkpoint.every_epochs": 99, "checkpoint.keep": 99}
    changes = CHANGES | how | {"checkpoint.every_steps": 3}
    save, run = checkpoint.Checkpoints.save, tmp_path / "run"

    def save_until_step_12(checkpoints, step, *arguments, **score):
        if step > 12:
            raise ZeroDivisionError  # the run breaks off
        save(checkpoints, step, *arguments, **score)

    monkeypatch.setattr(checkpoint.Checkpoints, "save", save_until_step_12)
    with pytest.raises(ZeroDivisionError):
        train_tiny(run, changes)
    monkeypatch.undo()
    assert saved_steps(run) in ([3, 6, 9], [3, 6, 9, 12])  # 12 was under way
    train_tiny(run, changes)
    assert saved_steps(run) == [3, 6, 9, 12, 15, 18, 20]
    assert_same_run(run, uninterrupted)

    monkeypatch.setattr("train_jax.run.trainer._SECONDS_BETWEEN_REPORTS", 0.0)
    often = CHANGES | how | {"checkpoint.every_minutes": 1e-9}
    # It is asked twice for each step, as a checkpoint that is late ends the stretch.
    with pytest.raises(Stopped, match="stopped after step 7 of 20"):
        train_tiny(tmp_path / "often", often, should_stop=AfterSteps(2 * 7))
    assert saved_steps(tmp_path / "often") == [1, 2, 3, 4, 5, 6, 7]


def test_evaluation_batches_are_no_larger_than_the_splits():
    parts = make_tiny({"eval_batch_size": 10**12})
    evaluation = parts.evaluator(parts.init_state().eval_variables, parts.val)
    assert evaluation.output_RM.shape == (1, 100, 10)


def test_images_lie_on_the_device_without_an_axis_of_channels():
    """A TPU would pad that axis to 128, and copy the split in each stretch of steps."""
    parts = make_tiny()
    ((_, ((image_MK, label_M1), _)),) = parts.trainer.feed(0, 1)
    assert image_MK.shape == (320, 8 * 8) and label_M1.shape == (320, 1)
    batch, _ = parts.trainer.next_batch(parts.init_state())
    assert batch[0][0].shape == (64, 8, 8, 1)
