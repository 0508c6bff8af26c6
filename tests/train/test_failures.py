"""How a run fails: a loss that is not finite, a folder that cannot be written."""

import dataclasses
import errno
import functools
import re
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.train.tiny import make_tiny, train_tiny
from train_jax.learning import optim
from train_jax.learning.state import TrainState, has_finite_params
from train_jax.learning.step import loss_of_batch
from train_jax.output import checkpoint, report
from train_jax.output import workdir as wd
from train_jax.run import debug_nans, loop
from train_jax.run.evaluator import Evaluator
from train_jax.run.failures import Diverged, Failed
from train_jax.tasks import Classification


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, monkeypatch):
    make_batch = Classification.make_batch

    def overflow(task, key, *examples, **places):
        (image_BHWC,), target_BY = make_batch(task, key, *examples, **places)
        return (image_BHWC / 1e-38 / 1e-38,), target_BY

    monkeypatch.setattr(Classification, "make_batch", overflow)
    with pytest.raises(Diverged) as caught:
        train_tiny(tmp_path, {"optimizer.name": "sgd", "debug_nans": True})
    message = str(caught.value)
    assert message.startswith("the loss is not finite in step 1; a lower config.")
    assert "in step 1 the first that is not finite is array 0 of the batch" in message
    assert message.endswith("; there is no checkpoint yet")
    assert not (tmp_path / wd.SUMMARY).exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"accumulation_steps": 1},
        # Without scan, under which nothing is looked at that remat would hide.
        {"accumulation_steps": 4, "model.remat": True},
        {"model.scan": True},
    ],
)
def test_divergence_is_traced_to_its_step(tmp_path, changes):
    changes = {"optimizer.name": "sgd", "optimizer.learning_rate": 1e5, **changes}
    with pytest.raises(Diverged) as caught:
        train_tiny(tmp_path, changes | {"debug_nans": True, "num_epochs": 40})
    message = str(caught.value)
    found = re.search(r"not finite in step (\d+); .* in step (\d+) the first", message)
    assert found is not None, message
    assert int(found[1]) - int(found[2]) in (0, 1)
    good = checkpoint.find(tmp_path / wd.CHECKPOINTS, "last")
    where = "there is no checkpoint yet"
    if good is not None:
        assert good < int(found[1])
        where = f"the last good checkpoint is {tmp_path}/checkpoints/{good}"
    assert message.endswith(where)


def test_an_update_that_is_not_finite_is_explained(tmp_path, monkeypatch):
    def overflow(*, momentum: float = 0.9, nesterov: bool = True):
        return optax.scale(float("inf"))

    monkeypatch.setitem(optim._OWN, "sgd", overflow)
    changes = {"optimizer.name": "sgd", "checkpoint.every_steps": 1}
    with pytest.raises(Diverged) as caught:
        train_tiny(tmp_path, changes | {"debug_nans": True})
    message = str(caught.value)
    assert message.startswith("parameters are not finite after step 1; ")
    assert "after step 1 the first that is not finite is parameter " in message


def test_a_test_loss_that_is_not_finite_repeats_no_step(tmp_path, monkeypatch):
    evaluate = Evaluator.__call__

    def spoil(evaluator, variables, split):
        result = evaluate(evaluator, variables, split)
        factor = np.nan if len(split) == 50 else 1.0
        return dataclasses.replace(result, loss_R=result.loss_R * factor)

    monkeypatch.setattr(Evaluator, "__call__", spoil)
    changes = {"dataset.test_split": "test[:50]", "debug_nans": True}
    with pytest.raises(Diverged) as caught:
        train_tiny(tmp_path, changes)
    message = str(caught.value)
    assert message.startswith("the test loss is not finite after step ")
    assert "repeated" not in message


def test_what_cannot_be_repeated_is_said(tmp_path, monkeypatch):
    changes = {"optimizer.name": "sgd", "optimizer.learning_rate": 1e38}
    changes |= {"freeze": "backbone", "accumulation_steps": 4, "debug_nans": True}
    seen = []

    def find(loss, *_, accumulation_steps):
        seen.append({**loss.keywords, "accumulation_steps": accumulation_steps})

    monkeypatch.setattr(debug_nans, "find_first_nonfinite", find)
    with pytest.raises(Diverged, match="when it is repeated, all of it is finite"):
        train_tiny(tmp_path, changes)
    frozen = ["^(?!head/)"]
    assert seen[-1] == {"accumulation_steps": 4, "frozen": frozen, "train": False}


def test_what_jax_raises_is_not_hidden(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr("train_jax.run.trainer.Trainer.run", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        train_tiny(tmp_path)


def test_a_folder_that_cannot_be_written_fails_the_run(tmp_path, monkeypatch):
    def fail(path, _):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(report, "append_metrics", fail)
    with pytest.raises(Failed) as caught:
        train_tiny(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / wd.METRICS}: No space left on device; there is no checkpoint yet"
    )


def test_a_folder_that_cannot_hold_checkpoints_fails_the_run(tmp_path, monkeypatch):
    prepare = wd.prepare_workdir

    def prepare_and_spoil(workdir, *arguments, **how):
        prepare(workdir, *arguments, **how)
        (workdir / wd.CHECKPOINTS).write_text("in the way")

    monkeypatch.setattr(wd, "prepare_workdir", prepare_and_spoil)
    with pytest.raises(Failed, match="checkpoints"):
        train_tiny(tmp_path)


def test_a_validation_loss_that_is_not_finite_fails_the_run(tmp_path, monkeypatch):
    evaluate = Evaluator.__call__

    def spoil(evaluator, *arguments):
        result = evaluate(evaluator, *arguments)
        return dataclasses.replace(result, loss_R=result.loss_R * np.nan)

    monkeypatch.setattr(Evaluator, "__call__", spoil)
    with pytest.raises(Diverged, match="validation loss is not finite after step 5"):
        train_tiny(tmp_path)


@pytest.mark.parametrize("val_split", ["train[320:420]", None])
def test_a_loss_that_is_not_finite_after_the_last_step_fails_the_run(
    tmp_path, val_split
):
    rates = {"optimizer.learning_rate": 1e30, "optimizer.weight_decay": 0.0}
    changes = {"num_steps": 1, "dataset.val_split": val_split, **rates}
    if val_split is None:
        changes["test_checkpoint"] = "last"
    with pytest.raises(Diverged, match=r"not finite (in|after) step 1"):
        train_tiny(tmp_path, changes)
    assert not (tmp_path / wd.SUMMARY).exists()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_training_that_changes_nothing_is_told(tmp_path, capsys, optimizer):
    changes = {"optimizer.name": optimizer, "optimizer.learning_rate": 1e-30}
    train_tiny(tmp_path, changes | {"num_epochs": 1})
    warning = capsys.readouterr().err
    assert warning.startswith("warning: 5 steps have not changed embedding/kernel")
    assert warning.count("\n") == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"num_epochs": 1},
        # The head starts at zero: the first step moves it alone.
        {"num_steps": 1, "model.initialization": "authors"},
    ],
)
def test_training_that_changes_something_is_not_told(changes, tmp_path, capsys):
    train_tiny(tmp_path, changes)
    assert capsys.readouterr().err == ""


def test_a_warm_up_that_begins_with_a_rate_of_0_is_not_told(tmp_path, capsys):
    changes = {"batch_size": 320, "num_epochs": 3, "optimizer.warmup_epochs": 2}
    train_tiny(tmp_path, changes)
    assert capsys.readouterr().err == ""


def test_a_run_that_has_lost_its_folder_ends_in_a_line(tmp_path, monkeypatch):
    holder = '{"pid": 17, "host": "colab-7", "renewed": 0}'
    validate = Evaluator.__call__

    def lose(evaluator, *arguments):  # before the first line of metrics
        (tmp_path / "lock.2").write_text(holder)
        return validate(evaluator, *arguments)

    monkeypatch.setattr(Evaluator, "__call__", lose)
    with pytest.raises(Failed) as caught:
        train_tiny(tmp_path)
    assert str(caught.value) == (
        f"process 17 on host colab-7 has taken over {tmp_path}; nothing more is "
        "written; there is no checkpoint yet"
    )
    assert (tmp_path / wd.METRICS).read_text() == ""
    assert not any((tmp_path / wd.CHECKPOINTS).iterdir())
    assert (tmp_path / "lock.2").read_text() == holder


class Fragile(nn.Module):
    """Overflows in evaluation, and divides by zero for two pairs of ones."""

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        return nn.Dense(3)(x / (x.sum() - 4) if train else x * 1e30 * 1e30)


def test_a_step_is_repeated_as_it_was_taken():
    image, key = jnp.ones((4, 2)), jax.random.key(0)
    variables = Fragile().init(key, image[:1], train=True)
    state = TrainState.create(variables, optax.sgd(0.1))
    batch = (image,), jax.nn.one_hot(jnp.arange(4) % 3, 3)

    def find(train=True, **how):
        loss = functools.partial(loss_of_batch, Fragile(), train=train)
        return debug_nans.find_first_nonfinite(loss, state, batch, key, **how)

    assert find() is None
    assert find(train=False) == find(accumulation_steps=2) == "output of Dense_0"


def test_a_state_with_a_parameter_that_is_not_finite_is_not_saved(tmp_path):
    state = make_tiny().init_state()
    assert has_finite_params(state)
    broken = state.replace(params=state.params | {"cls": state.params["cls"] * np.inf})
    assert not has_finite_params(broken)
    two = jax.tree.map(lambda *x: jnp.stack(x), state, broken)
    assert has_finite_params(two)  # of several runs one goes on
    changes = {"dataset.val_split": None}
    with (
        mock.patch.object(loop, "has_finite_params", lambda state: False),
        pytest.raises(Diverged, match=r"after step 5; .* there is no checkpoint yet$"),
    ):
        train_tiny(tmp_path, changes)
