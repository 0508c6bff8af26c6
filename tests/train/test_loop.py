"""Whole runs: what they leave behind, and that an interrupted one loses nothing."""

import dataclasses
import json

import chex
import jax
import numpy as np
import pytest

from tests.train.tiny import RESNET, set_up
from train_jax import checkpoint, loop
from train_jax import workdir as wd
from train_jax.report import Report


def final_state(ready):
    """The state in the newest checkpoint of a run."""
    directory = ready.workdir / wd.CHECKPOINTS
    step = checkpoint.find_newest(directory)
    assert step is not None
    template = ready.first_state()
    return checkpoint.restore(directory, step, template, ready.state_sharding(template))


def records(ready):
    """The lines of metrics.jsonl, without those that tell of time."""
    lines = (ready.workdir / wd.METRICS).read_text().splitlines()
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
    """An uninterrupted run and its summary."""
    ready = set_up(tmp_path_factory.mktemp("run"), CHANGES)
    return ready, loop.train_and_evaluate(ready)


def test_a_run_leaves_what_it_promises(finished):
    ready, summary = finished
    left = {path.name for path in ready.workdir.iterdir()}
    assert left == {
        *(wd.CONFIG, wd.METRICS, wd.SUMMARY),
        *(wd.CHECKPOINTS, wd.TENSORBOARD, wd.PLOTS),
    }
    assert summary == wd.read_json(ready.workdir / wd.SUMMARY)
    assert summary["steps"] == 20
    assert summary["num_params"] == 3_850
    assert summary["versions"]["jax"] == jax.__version__
    lines = records(ready)
    assert [line["step"] for line in lines] == [5, 10, 15, 20]
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]
    assert lines[-1]["val_accuracy"] == summary["val_accuracy"]
    pictures = {path.name for path in (ready.workdir / wd.PLOTS).iterdir()}
    assert pictures == {
        "curves.png",
        "confusion_matrix.png",
        "misclassified.png",
        "attention.png",
    }
    assert any((ready.workdir / wd.TENSORBOARD).iterdir())


def test_summary_counts_the_whole_test_split(finished):
    ready, summary = finished
    state = final_state(ready)
    image = ready.test.image_BHWC.astype(np.float32) / 255
    image = (image - ready.task.mean[0]) / ready.task.std[0]
    logits = ready.model.apply(state.eval_variables, image)
    hits = np.asarray(logits).argmax(axis=1) == ready.test.label_B
    np.testing.assert_allclose(summary["test_accuracy"], hits.mean(), atol=1e-9)


def test_a_finished_run_is_not_trained_again(finished, monkeypatch):
    ready, summary = finished
    monkeypatch.setattr(loop, "EpochRunner", None)  # would fail if it were used
    assert loop.train_and_evaluate(ready) == summary


@pytest.mark.parametrize("last_epoch", [1, 3, 4])
def test_resume_equals_the_uninterrupted_run(
    finished, tmp_path, monkeypatch, last_epoch
):
    uninterrupted, summary = finished
    report_epoch = Report.epoch

    def stop(report, record):
        report_epoch(report, record)
        if record["epoch"] == last_epoch:
            raise KeyboardInterrupt

    monkeypatch.setattr(Report, "epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        loop.train_and_evaluate(set_up(tmp_path / "run", CHANGES))
    monkeypatch.undo()

    resumed = set_up(tmp_path / "run", CHANGES)
    again = loop.train_and_evaluate(resumed)
    chex.assert_trees_all_equal(final_state(resumed), final_state(uninterrupted))
    assert records(resumed) == records(uninterrupted)
    assert again["test_loss"] == summary["test_loss"]


def test_batchnorm_resumes_and_models_without_attention_draw_none(tmp_path):
    changes = RESNET | {"num_steps": 7, "checkpoint.every_epochs": 1}
    ready = set_up(tmp_path / "run", changes)
    summary = loop.train_and_evaluate(ready)
    assert summary["steps"] == 7
    assert [line["step"] for line in records(ready)] == [5, 7]
    assert not (ready.workdir / wd.PLOTS / "attention.png").exists()

    state = final_state(ready)
    (ready.workdir / wd.SUMMARY).unlink()
    again = loop.train_and_evaluate(ready)  # only the evaluation is left to do
    assert again["test_loss"] == summary["test_loss"]
    chex.assert_trees_all_equal(final_state(ready), state)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    ready = set_up(tmp_path / "run", {"optimizer.name": "sgd"})
    task = dataclasses.replace(ready.task, std=(1e-38,))
    ready = dataclasses.replace(ready, task=task)
    with pytest.raises(loop.Diverged, match="not finite in step 1"):
        loop.train_and_evaluate(ready)
    assert not (ready.workdir / wd.SUMMARY).exists()
