"""Sequence to sequence in the trainer: the same loop, other examples."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train_jax.config.config import load_config
from train_jax.config.models import IMAGE_MODELS
from train_jax.data import load
from train_jax.output import workdir as wd
from train_jax.run.experiment import train_and_evaluate
from train_jax.run.setup import set_up
from train_jax.tasks import Translation

REVERSE = "configs/transformer_reverse.py"


def test_the_target_is_the_reversed_source():
    train, test = load("reverse", "train"), load("reverse", "test")
    assert (len(train), len(test)) == (50_000, 2_000)
    for split in (train, test):
        np.testing.assert_array_equal(split.source_BS, split.target_BT[:, ::-1])
        assert set(np.unique(split.source_BS)) == set(range(split.num_symbols))
    again = load("reverse", "train[10:20]")
    np.testing.assert_array_equal(again.source_BS, train.source_BS[10:20])
    assert len(np.unique(train.source_BS[:100], axis=0)) == 100


def test_targets_are_shifted_right():
    task = Translation(10, source_length=3, target_length=3)
    (source_BS, known_BT), target_BTV = task.make_batch(
        jax.random.key(0), jnp.array([[1, 2, 3]]), jnp.array([[3, 2, 1]])
    )
    np.testing.assert_array_equal(source_BS, [[1, 2, 3]])
    np.testing.assert_array_equal(known_BT, [[10, 3, 2]])
    np.testing.assert_array_equal(target_BTV.argmax(axis=-1), [[3, 2, 1]])
    assert target_BTV.shape == (1, 3, 11)


@pytest.mark.slow  # compiles and trains a Transformer
def test_a_short_run_writes_metrics_and_plots(tmp_path):
    changes = {"num_steps": "6", "dataset.train_split": "train[:256]"}
    changes |= {"optimizer.warmup_epochs": "0", "dataset.test_split": "test[:20]"}
    changes |= {"dataset.val_split": "train[49000:49020]", "model.width": "16"}
    summary = train_and_evaluate(load_config(REVERSE, changes), tmp_path / "run")
    lines = (tmp_path / "run" / wd.METRICS).read_text().splitlines()
    losses = [json.loads(line)["train_loss"] for line in lines]
    assert losses[0] > losses[-1]
    assert summary["steps"] == 6 and summary["dataset"] == "reverse"
    pictures = {path.name for path in (tmp_path / "run" / wd.PLOTS).iterdir()}
    assert pictures == {"curves.png", "cross_attention.png"}


def test_a_sequence_is_correct_only_if_every_token_is():
    changes = {
        "dataset.train_split": "train[:256]",
        "dataset.val_split": "train[256:320]",
    }
    changes |= {"dataset.test_split": "test[:64]", "model.width": "16"}
    parts = set_up(load_config(REVERSE, changes))
    variables = parts.init_state().eval_variables
    eval_step = jax.jit(parts.task.make_eval_step(parts.model))
    source_BS, target_BT = map(jnp.asarray, parts.test.examples)
    _, hit_B, decoded_BT = eval_step(variables, source_BS, target_BT)
    assert not hit_B.any()
    _, hit_B, _ = eval_step(variables, source_BS, decoded_BT)
    assert hit_B.all()
    _, hit_B, _ = eval_step(variables, source_BS, decoded_BT.at[:, -1].add(1))
    assert not hit_B.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {
                "dataset.name": "digits",
                "dataset.train_split": "train",
                "dataset.val_split": "test",
            },
            f"config.model.name must be one of {', '.join(IMAGE_MODELS)} for dataset "
            "'digits', got 'transformer'",
        ),
        (
            {"augment.flip": "random"},
            "config.augment.flip must be None for dataset 'reverse', which has no "
            "images, got 'random'",
        ),
        (
            {"model.dropout_rate": "1.5"},
            "config.model.dropout_rate must be a number in [0, 1), got 1.5",
        ),
        (
            {"dataset.train_split": "dev"},
            "dataset 'reverse' has no split 'dev'",
        ),
    ],
)
def test_fields_that_do_not_fit_are_named(tmp_path, changes, message):
    with pytest.raises(ValueError) as caught:
        train_and_evaluate(load_config(REVERSE, changes), tmp_path / "run")
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()
