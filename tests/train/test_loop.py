"""Whole runs: what they leave behind, and that an interrupted one loses nothing."""

import dataclasses
import errno
import json
import re

import chex
import jax
import numpy as np
import pytest

from tests.train.tiny import RESNET, set_up
from train_jax import checkpoint, epoch, loop
from train_jax import workdir as wd
from train_jax.evaluate import Evaluator


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


class AfterSteps:
    """Asks a run to stop after a number of steps."""

    def __init__(self, count):
        self.count = count

    def __call__(self):
        self.count -= 1
        return self.count <= 0


def test_stopped_at_any_step_it_equals_the_uninterrupted_run(
    finished, tmp_path, monkeypatch
):
    uninterrupted, summary = finished
    # Look at the metrics after every step, to be able to stop there.
    monkeypatch.setattr(epoch, "_SECONDS_BETWEEN_REPORTS", 0.0)
    done = 0
    for steps in (1, 2, 2, 3, 1):  # the third is at the end of an epoch
        done += steps
        with pytest.raises(loop.Stopped, match=f"stopped after step {done} of 20"):
            loop.train_and_evaluate(
                set_up(tmp_path / "run", CHANGES), AfterSteps(steps)
            )
    resumed = set_up(tmp_path / "run", CHANGES)
    again = loop.train_and_evaluate(resumed)
    chex.assert_trees_all_equal(final_state(resumed), final_state(uninterrupted))
    assert records(resumed) == records(uninterrupted)
    assert again["test_loss"] == summary["test_loss"]


def test_a_run_that_breaks_off_equals_the_uninterrupted_run(
    finished, tmp_path, monkeypatch
):
    uninterrupted, _ = finished

    def fail(*_):
        raise ZeroDivisionError  # a mistake in the program, say

    monkeypatch.setattr(loop, "_is_due", lambda _, step: step < 15 or fail())
    with pytest.raises(ZeroDivisionError):
        loop.train_and_evaluate(set_up(tmp_path / "run", CHANGES))
    monkeypatch.undo()
    resumed = set_up(tmp_path / "run", CHANGES)
    assert len(records(resumed)) == 3  # one more than was saved
    loop.train_and_evaluate(resumed)
    chex.assert_trees_all_equal(final_state(resumed), final_state(uninterrupted))
    assert records(resumed) == records(uninterrupted)


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
    ready = set_up(tmp_path / "run", {"optimizer.name": "sgd", "debug_nans": True})
    task = dataclasses.replace(ready.task, std=(1e-38,))
    ready = dataclasses.replace(ready, task=task)
    with pytest.raises(loop.Diverged) as caught:
        loop.train_and_evaluate(ready)
    message = str(caught.value)
    assert message.startswith("the loss is not finite in step 1; a lower config.")
    assert "in step 1 the first that is not finite is array 0 of the batch" in message
    assert message.endswith("; there is no checkpoint yet")
    assert not (ready.workdir / wd.SUMMARY).exists()


def test_divergence_is_traced_to_its_step(tmp_path):
    changes = {"optimizer.name": "sgd", "optimizer.learning_rate": 1e5}
    ready = set_up(tmp_path / "run", changes | {"debug_nans": True, "num_epochs": 40})
    with pytest.raises(loop.Diverged) as caught:
        loop.train_and_evaluate(ready)
    message = str(caught.value)
    found = re.search(r"not finite in step (\d+); .* in step (\d+) the first", message)
    assert found is not None, message
    assert int(found[1]) - int(found[2]) in (0, 1)
    good = checkpoint.find_newest(ready.workdir / wd.CHECKPOINTS)
    where = "there is no checkpoint yet"
    if good is not None:
        assert good < int(found[1])
        where = f"the last good checkpoint is {ready.workdir}/checkpoints/{good}"
    assert message.endswith(where)


def test_what_cannot_be_repeated_is_said(tmp_path, monkeypatch):
    changes = {"optimizer.name": "sgd", "optimizer.learning_rate": 1e30}
    ready = set_up(tmp_path / "run", changes | {"debug_nans": True})
    monkeypatch.setattr(loop, "find_first_nonfinite", lambda *_: None)
    with pytest.raises(loop.Diverged, match="when it is repeated, all of it is finite"):
        loop.train_and_evaluate(ready)


def test_what_jax_raises_is_not_hidden(tmp_path, monkeypatch):
    def fail(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(loop.EpochRunner, "run", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        loop.train_and_evaluate(set_up(tmp_path / "run"))


def test_a_folder_that_cannot_be_written_fails_the_run(tmp_path, monkeypatch):
    ready = set_up(tmp_path / "run")

    def fail(path, _):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(wd, "append_metrics", fail)
    with pytest.raises(loop.Failed) as caught:
        loop.train_and_evaluate(ready)
    assert str(caught.value) == (
        f"{ready.workdir / wd.METRICS}: No space left on device; "
        "there is no checkpoint yet"
    )


def test_a_folder_that_cannot_hold_checkpoints_fails_the_run(tmp_path):
    ready = set_up(tmp_path / "run")
    (ready.workdir / wd.CHECKPOINTS).write_text("in the way")
    with pytest.raises(loop.Failed, match="checkpoints"):
        loop.train_and_evaluate(ready)


def test_a_validation_loss_that_is_not_finite_fails_the_run(tmp_path, monkeypatch):
    ready = set_up(tmp_path / "run")
    evaluate = Evaluator.__call__

    def spoil(evaluator, *arguments):
        result = evaluate(evaluator, *arguments)
        return dataclasses.replace(result, loss_R=result.loss_R * np.nan)

    monkeypatch.setattr(Evaluator, "__call__", spoil)
    with pytest.raises(loop.Diverged, match="not finite in step 5"):
        loop.train_and_evaluate(ready)
