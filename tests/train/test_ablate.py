"""Ablations: every variant is trained once, whatever happens, and compared."""

import csv
import json

import jax
import pytest

from train_jax import ablate
from train_jax.output import lock
from train_jax.output import workdir as wd
from train_jax.run import loop

CONFIG = """
SEEDS = (0, 1)

def get_config():
    return {
        "model": {
            "name": "vit", "patch_size": 4, "width": 8, "depth": 1, "num_heads": 2,
        },
        "dataset": {
            "train_split": "train[:128]",
            "val_split": "train[128:200]",
            "test_split": "test[:50]",
        },
        "batch_size": 64,
        "num_epochs": 1,
    }

def get_variants():
    return {
        "baseline": {},
        "no feed-forward": {"model.mlp_ratio": None},
        "three heads": {"model.num_heads": 3},
        "diverging": {"optimizer.name": "sgd", "optimizer.learning_rate": 1e38},
    }
"""


@pytest.fixture
def arguments(tmp_path):
    """The command's arguments; the results go to `tmp_path / "out"`."""
    (tmp_path / "config.py").write_text(CONFIG)
    workdir = str(tmp_path / "out")
    return ["--config", str(tmp_path / "config.py"), "--workdir", workdir]


def _pretend(ready):
    """Leave what a finished run leaves, or diverge as one does."""
    if ready.config.optimizer.name == "sgd":
        raise loop.Diverged("the loss is not finite in step 1")
    depth_of_mlp = ready.config.model.mlp_ratio or 0
    summary = {
        "test_accuracy": 0.9 + 0.01 * ready.config.seed + 0.005 * depth_of_mlp,
        "test_loss": 0.1,
        "val_accuracy": 0.9,
        "num_params": 1000,
        "images_per_second": 1e4,
        "train_seconds": 1.0,
        "steps": 2,
        "device": "none",
        "config": wd.to_json(ready.config),
    }
    wd.write_json(ready.workdir / wd.SUMMARY, summary)
    return summary


def test_variants_are_trained_once_and_failures_are_told(
    arguments, tmp_path, capsys, monkeypatch
):
    trained = []

    def interrupted(ready, should_stop):
        if len(trained) == 3:
            raise loop.Stopped("stopped after step 1 of 2")
        return uninterrupted(ready, should_stop)

    def uninterrupted(ready, should_stop):
        trained.append(ready.workdir)
        return _pretend(ready)

    monkeypatch.setattr(loop, "train_and_evaluate", interrupted)
    assert ablate.main(arguments) == 75
    assert not (tmp_path / "out" / ablate.TABLE).exists()
    monkeypatch.setattr(loop, "train_and_evaluate", uninterrupted)
    assert ablate.main(arguments) == 0
    # Those of three heads cannot be built; nothing was trained twice.
    assert len(trained) == len(set(trained)) == 6

    output = capsys.readouterr().out
    assert output.count("done before") == 3
    with (tmp_path / "out" / ablate.TABLE).open() as file:
        rows = {(row["variant"], row["seed"]): row for row in csv.DictReader(file)}
    assert len(rows) == 8
    assert "num_heads 3" in rows["three heads", "1"]["error"]
    assert "not finite in step 1" in rows["diverging", "0"]["error"]
    accuracies = {key: row["test_accuracy"] for key, row in rows.items()}
    assert accuracies["baseline", "1"] == "0.93"
    assert accuracies["no feed-forward", "0"] == "0.9"
    names = ("baseline", "no feed-forward", "three heads", "diverging")
    lines = {
        name: line for line in output.splitlines() for name in names if name in line
    }
    assert "92.50 ± 0.71" in lines["baseline"] and "+0.00" in lines["baseline"]
    assert "-2.00" in lines["no feed-forward"] and "2/2" in lines["no feed-forward"]
    assert "failed" in lines["three heads"] and "0/2" in lines["diverging"]
    assert (tmp_path / "out" / ablate.PICTURE).stat().st_size > 5_000

    assert ablate.main(arguments) == 0
    assert len(trained) == 6


def test_a_variant_is_trained_as_its_config_says(arguments, tmp_path, capsys):
    only = CONFIG.replace("SEEDS = (0, 1)", "SEEDS = (1,)").replace('"baseline"', "#")
    only = only.replace('"three heads"', "#").replace('"diverging"', "#")
    (tmp_path / "config.py").write_text(only)
    assert ablate.main(arguments) == 0
    folder = tmp_path / "out" / "no_feed_forward" / "seed_1"
    summary = wd.read_json(folder / wd.SUMMARY)
    assert summary["seed"] == 1 and summary["num_params"] == 594
    assert "epoch 1/1" in (folder / ablate.LOG).read_text()
    assert "epoch 1/1" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("model.mlp_ratio", "model.mlp", "variant 'no feed-forward': config.model.mlp"),
        ("def get_variants", "def variants", "has no attribute 'get_variants'"),
        ("SEEDS = (0, 1)", "SEEDS = (-1,)", "config.seed must be an integer"),
        ('"train[:128]"', '"dev"', "variant 'baseline': dataset 'digits' has no split"),
    ],
)
def test_mistakes_in_the_config_are_found_before_training(
    arguments, tmp_path, capsys, old, new, message
):
    (tmp_path / "config.py").write_text(CONFIG.replace(old, new))
    assert ablate.main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_variants_need_folders_of_their_own(arguments, tmp_path, capsys):
    text = CONFIG.replace('"three heads"', '"no feed, forward"')
    (tmp_path / "config.py").write_text(text)
    assert ablate.main(arguments) == 2
    error = capsys.readouterr().err
    assert "variant 'no feed, forward': its folder" in error
    assert "is that of 'no feed-forward', too" in error
    assert not (tmp_path / "out").exists()


def test_what_was_no_fault_of_the_variant_is_tried_again(
    arguments, tmp_path, capsys, monkeypatch
):
    def out_of_memory(ready, should_stop):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(loop, "train_and_evaluate", out_of_memory)
    assert ablate.main(arguments) == 0
    assert "baseline, seed 0: RESOURCE_EXHAUSTED" in capsys.readouterr().out
    monkeypatch.setattr(loop, "train_and_evaluate", lambda ready, _: _pretend(ready))
    assert ablate.main(arguments) == 0
    output = capsys.readouterr().out
    assert "baseline, seed 0: test accuracy" in output
    assert "RESOURCE_EXHAUSTED" not in output


def test_a_folder_in_use_is_left_alone(arguments, tmp_path, capsys, monkeypatch):
    trial = tmp_path / "out" / "baseline" / "seed_1"
    for folder, code in ((tmp_path / "out", 2), (trial, 2)):
        held = lock.acquire(folder)
        assert ablate.main(arguments) == code
        assert f"{str(folder)!r} is in use by process" in capsys.readouterr().err
        held.close()
    locks = []

    def train(ready, _):  # meanwhile another process takes the next one
        locks.append(lock.acquire(trial))
        return _pretend(ready)

    monkeypatch.setattr(loop, "train_and_evaluate", train)
    assert ablate.main(arguments) == 1
    assert f"{str(trial)!r} is in use by process" in capsys.readouterr().err
    assert not (trial / ablate.FAILURE).exists()
    locks[0].close()


def test_results_of_another_config_are_left_alone(arguments, tmp_path, capsys):
    folder = tmp_path / "out" / "baseline" / "seed_0"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"batch_size": 7}))
    assert ablate.main(arguments) == 2
    assert "config.batch_size was 7 and is 64" in capsys.readouterr().err
