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
from train_jax.output import checkpoint
from train_jax.output import workdir as wd
from train_jax.run import epoch, loop
from train_jax.run.evaluate import Evaluator


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


def test_a_folder_that_cannot_hold_checkpoints_fails_the_run(tmp_path, monkeypatch):
    ready = set_up(tmp_path / "run")
    check = wd.check

    def check_and_spoil(workdir, *arguments, **how):
        check(workdir, *arguments, **how)
        (workdir / wd.CHECKPOINTS).write_text("in the way")

    monkeypatch.setattr(wd, "check", check_and_spoil)
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


def test_a_constant_schedule_goes_on_as_if_it_had_never_ended(tmp_path):
    constant = CHANGES | {"optimizer.schedule": "constant"}
    longer = set_up(tmp_path / "longer", constant | {"num_epochs": 3})
    loop.train_and_evaluate(longer)
    loop.train_and_evaluate(set_up(tmp_path / "run", constant | {"num_epochs": 2}))
    extended = set_up(tmp_path / "run", constant | {"num_epochs": 3})
    assert loop.train_and_evaluate(extended)["steps"] == 15
    chex.assert_trees_all_equal(final_state(extended), final_state(longer))
    assert records(extended) == records(longer)


def test_an_extended_run_enters_the_longer_schedule_where_it_stands(finished, tmp_path):
    uninterrupted, _ = finished
    loop.train_and_evaluate(set_up(tmp_path / "run", CHANGES | {"num_epochs": 2}))
    with pytest.raises(ValueError, match="--extend trains it on, with the linear sche"):
        set_up(tmp_path / "run", CHANGES)
    extended = set_up(tmp_path / "run", CHANGES, extend=True)
    summary = loop.train_and_evaluate(extended, extend=True)
    assert summary["steps"] == 20
    rates = [line["learning_rate"] for line in records(extended)]
    whole = [line["learning_rate"] for line in records(uninterrupted)]
    assert rates[2:] == whole[2:] and rates[1] < whole[1]
    history = wd.read_json(extended.workdir / wd.CONFIG)[wd.HISTORY]
    assert history == [{"until_step": 10, "num_epochs": 2, "num_steps": None}]
    again = set_up(tmp_path / "run", CHANGES)
    assert loop.train_and_evaluate(again) == summary


def test_a_run_that_ended_within_an_epoch_counts_its_seconds_once(tmp_path):
    constant = {"optimizer.schedule": "constant"}
    loop.train_and_evaluate(set_up(tmp_path / "run", constant | {"num_steps": 7}))
    extended = set_up(tmp_path / "run", constant | {"num_steps": 12})
    summary = loop.train_and_evaluate(extended)
    lines = (extended.workdir / wd.METRICS).read_text().splitlines()
    steps = {line["step"]: line["seconds"] for line in map(json.loads, lines)}
    assert list(steps) == [5, 7, 10, 12] and steps[10] > steps[7]
    np.testing.assert_allclose(
        summary["train_seconds"], steps[5] + steps[10] + steps[12]
    )


def test_the_test_split_is_read_with_the_best_checkpoint(tmp_path, monkeypatch):
    changes = {"num_epochs": 3, "checkpoint.keep": 1, "test_checkpoint": "best"}
    ready = set_up(tmp_path / "run", changes)
    evaluate, accuracies = Evaluator.__call__, iter((0.5, 0.9, 0.7))

    def pretend(evaluator, variables, split):
        result = evaluate(evaluator, variables, split)
        if split is ready.val:
            accuracy_R = np.array([next(accuracies)])
            result = dataclasses.replace(result, accuracy_R=accuracy_R)
        return result

    monkeypatch.setattr(Evaluator, "__call__", pretend)
    summary = loop.train_and_evaluate(ready)
    monkeypatch.undo()
    assert summary["test_step"] == 10 and summary["val_accuracy"] == 0.9
    folder = ready.workdir / wd.CHECKPOINTS
    template = ready.first_state()
    best = checkpoint.restore(folder, 10, template, ready.state_sharding(template))
    test = Evaluator(ready)(best.eval_variables, ready.test)
    assert summary["test_loss"] == test.loss_R.mean()

    assert [checkpoint.find(folder, which) for which in ("last", "best")] == [15, 10]
    assert checkpoint.find(folder, "10") == 10
    with pytest.raises(checkpoint.CheckpointError) as caught:
        checkpoint.find(folder, "12")
    assert "must be last, best or the step of one of those" in str(caught.value)
    assert "(10, 15), got '12'" in str(caught.value)


def saved_steps(ready):
    names = [path.name for path in (ready.workdir / wd.CHECKPOINTS).iterdir()]
    return sorted(int(name) for name in names if name.isdecimal())


def test_checkpoints_between_the_ends_of_epochs(finished, tmp_path, monkeypatch):
    uninterrupted, _ = finished
    how = {"checkpoint.every_epochs": 99, "checkpoint.keep": 99}
    changes = CHANGES | how | {"checkpoint.every_steps": 3}
    save = checkpoint.Checkpoints.save

    def save_until_step_12(checkpoints, step, *arguments, **score):
        if step > 12:
            raise ZeroDivisionError  # the run breaks off
        save(checkpoints, step, *arguments, **score)

    monkeypatch.setattr(checkpoint.Checkpoints, "save", save_until_step_12)
    with pytest.raises(ZeroDivisionError):
        loop.train_and_evaluate(set_up(tmp_path / "run", changes))
    monkeypatch.undo()
    resumed = set_up(tmp_path / "run", changes)
    assert saved_steps(resumed) in ([3, 6, 9], [3, 6, 9, 12])  # 12 was under way
    loop.train_and_evaluate(resumed)
    assert saved_steps(resumed) == [3, 6, 9, 12, 15, 18, 20]
    chex.assert_trees_all_equal(final_state(resumed), final_state(uninterrupted))
    assert records(resumed) == records(uninterrupted)

    monkeypatch.setattr(epoch, "_SECONDS_BETWEEN_REPORTS", 0.0)
    often = set_up(
        tmp_path / "often",
        CHANGES | how | {"num_steps": 7, "checkpoint.every_minutes": 1e-9},
    )
    loop.train_and_evaluate(often)
    assert saved_steps(often) == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("changes", [{}, {"optimizer.name": "sgd"}])
def test_training_that_changes_nothing_is_told(tmp_path, capsys, changes):
    changes = changes | {"num_epochs": 1}
    still = changes | {"optimizer.learning_rate": 1e-30}
    loop.train_and_evaluate(set_up(tmp_path / "run", still))
    warning = capsys.readouterr().err
    assert warning.startswith("warning: the first epoch has not changed embedding/kern")
    assert warning.count("\n") == 1
    loop.train_and_evaluate(set_up(tmp_path / "other", changes))
    assert capsys.readouterr().err == ""


def test_evaluation_batches_are_no_larger_than_the_splits(tmp_path):
    ready = set_up(tmp_path / "run", {"eval_batch_size": 10**12})
    state = ready.first_state()
    evaluation = Evaluator(ready)(state.eval_variables, ready.val)
    assert evaluation.output_RM.shape == (1, 100, 10)


def test_a_run_that_has_lost_its_folder_ends_in_a_line(tmp_path, monkeypatch):
    ready = set_up(tmp_path / "run")
    holder = '{"pid": 17, "host": "colab-7", "renewed": 0}'
    plain = wd.plain

    def lose(record):  # before the first line of metrics
        (ready.workdir / "lock.2").write_text(holder)
        return plain(record)

    monkeypatch.setattr(wd, "plain", lose)
    with pytest.raises(loop.Failed) as caught:
        loop.train_and_evaluate(ready)
    assert str(caught.value) == (
        f"process 17 on host colab-7 has taken over {ready.workdir}; nothing more is "
        "written; there is no checkpoint yet"
    )
    assert (ready.workdir / wd.METRICS).read_text() == ""
    assert not any((ready.workdir / wd.CHECKPOINTS).iterdir())
    assert (ready.workdir / "lock.2").read_text() == holder
