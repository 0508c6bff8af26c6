"""Ablations: every variant is trained once, whatever happens, and compared."""

import csv
import json

import jax
import numpy as np
import pytest

from train_jax import ablate
from train_jax.config.config import to_json
from train_jax.output import lock
from train_jax.output import workdir as wd
from train_jax.output.files import read_json, write_json
from train_jax.run import experiment
from train_jax.run.failures import Diverged, Failed, Stopped

CONFIG = """
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
        "num_seeds": 2,
    }

def get_variants():
    return {
        "baseline": {},
        "no feed-forward": {"model.mlp_ratio": None},
        "three heads": {"model.num_heads": 3},
        "one diverging": {"optimizer.name": "adam"},
        "diverging": {"optimizer.name": "sgd", "optimizer.learning_rate": 1e38},
    }
"""


@pytest.fixture
def arguments(tmp_path):
    """The command's arguments; the results go to `tmp_path / "out"`."""
    (tmp_path / "config.py").write_text(CONFIG)
    workdir = str(tmp_path / "out")
    return ["--config", str(tmp_path / "config.py"), "--workdir", workdir]


def _pretend(config, workdir, *, should_stop, extend=False):
    """Leave what finished runs leave, or diverge: with sgd all, with adam the last."""
    if config.optimizer.name == "sgd":
        raise Diverged("the loss is not finite in step 1")
    bonus = 0.005 * (config.model.arguments["mlp_ratio"] or 0)
    accuracies = [0.9 + 0.01 * seed + bonus for seed in range(config.num_seeds)]
    mean, std = np.mean(accuracies), np.std(accuracies, ddof=1)
    if config.optimizer.name == "adam":
        accuracies[-1] = None
    summary = {
        "test_accuracy": mean,
        "test_accuracy_std": std,
        "test_loss": 0.1,
        "num_params": 1000,
        "images_per_second": 1e4,
        "train_seconds": 1.0,
        "steps": 2,
        "device": "none",
        "config": to_json(config),
        "runs": [
            {"seed": seed, "test_accuracy": accuracy}
            for seed, accuracy in enumerate(accuracies)
        ],
    }
    wd.check_workdir(workdir, to_json(config), overwrite=False, extend=extend)
    wd.record_config(workdir, to_json(config))
    write_json(workdir / wd.SUMMARY, summary)
    return summary


def test_variants_are_trained_once_and_failures_are_told(
    arguments, tmp_path, capsys, monkeypatch
):
    trained, train_and_evaluate = [], experiment.train_and_evaluate

    def train(config, workdir, *, should_stop, extend):
        # Three heads cannot be built, and what is finished is not trained again.
        if (workdir / wd.SUMMARY).exists() or config.model.arguments["num_heads"] == 3:
            return train_and_evaluate(config, workdir, should_stop=should_stop)
        if len(trained) == 1 and not is_second:
            raise Stopped("stopped after step 1 of 2")
        trained.append(workdir.name)
        return _pretend(config, workdir, should_stop=should_stop)

    monkeypatch.setattr(experiment, "train_and_evaluate", train)
    is_second = False
    assert ablate.main(arguments) == 75
    assert not (tmp_path / "out" / ablate.TABLE).exists()
    is_second = True
    assert ablate.main(arguments) == 0
    assert trained == ["baseline", "no_feed_forward", "one_diverging", "diverging"]

    output = capsys.readouterr().out
    assert output.count("done before") == 1
    with (tmp_path / "out" / ablate.TABLE).open() as file:
        rows = {(row["variant"], row["seed"]): row for row in csv.DictReader(file)}
    assert len(rows) == 8
    assert "num_heads 3" in rows["three heads", ""]["error"]
    assert "not finite in step 1" in rows["diverging", ""]["error"]
    accuracies = {key: float(row["test_accuracy"] or 0) for key, row in rows.items()}
    assert accuracies["baseline", "1"] == 0.93
    assert accuracies["no feed-forward", "0"] == 0.9
    assert rows["one diverging", "1"]["test_accuracy"] == ""
    table = output[output.rindex("change") :].splitlines()
    lines = {line.strip().partition("  ")[0]: line for line in table}
    assert "92.50 ± 0.71" in lines["baseline"] and "+0.00" in lines["baseline"]
    assert "-2.00" in lines["no feed-forward"] and "2/2" in lines["no feed-forward"]
    assert "1/2" in lines["one diverging"] and "±" not in lines["one diverging"]
    assert "failed" in lines["three heads"] and "failed" in lines["diverging"]
    assert (tmp_path / "out" / ablate.PICTURE).stat().st_size > 5_000


@pytest.mark.slow  # compiles and trains
def test_a_variant_is_trained_as_its_config_says(arguments, tmp_path, capsys):
    only = CONFIG.replace('"baseline"', "#").replace('"three heads"', "#")
    only = only.replace('"one diverging"', "#").replace('"diverging"', "#")
    (tmp_path / "config.py").write_text(only)
    assert ablate.main(arguments) == 0
    folder = tmp_path / "out" / "no_feed_forward"
    summary = read_json(folder / wd.SUMMARY)
    assert summary["num_params"] == 594
    assert [run["seed"] for run in summary["runs"]] == [0, 1]
    assert "epoch 1/1" in (folder / ablate.LOG).read_text()
    output = capsys.readouterr().out
    assert "epoch 1/1" not in output

    assert ablate.main(arguments) == 0
    assert capsys.readouterr().out.count("done before") == 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("model.mlp_ratio", "model.mlp", "variant 'no feed-forward': config.model.mlp"),
        ("def get_variants", "def variants", "does not define get_variants"),
        ('"num_seeds": 2', '"num_seeds": 0', "config.num_seeds must be an integer"),
        ('"train[:128]"', '"dev"', "variant 'baseline': dataset 'digits' has no split"),
        ('"three heads"', '"±"', "variant '±': its name must have a letter or a digit"),
        ('"baseline": {}', '"baseline": None', "must return a dict, name → dict of"),
    ],
)
def test_mistakes_in_the_config_are_found_before_training(
    arguments, tmp_path, capsys, old, new, message
):
    (tmp_path / "config.py").write_text(CONFIG.replace(old, new))
    assert ablate.main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_values_of_numpy_are_numbers(tmp_path, arguments):
    changes = """{"model.num_heads": np.int64(4),
        "optimizer.milestones": (np.float64(0.25), 0.5)}"""
    text = CONFIG.replace('{"model.num_heads": 3}', changes)
    file = tmp_path / "config.py"
    file.write_text("import numpy as np\n" + text)
    variants = ablate.list_variants(str(file), {}, tmp_path / "out")
    assert variants[2].config.model.arguments["num_heads"] == 4
    assert variants[2].config.optimizer.milestones == (0.25, 0.5)


def test_variants_need_folders_of_their_own(arguments, tmp_path, capsys):
    text = CONFIG.replace('"three heads"', '"no feed, forward"')
    (tmp_path / "config.py").write_text(text)
    assert ablate.main(arguments) == 2
    error = capsys.readouterr().err
    assert "variant 'no feed, forward': its folder" in error
    assert "is that of 'no feed-forward', too" in error
    assert not (tmp_path / "out").exists()


def test_a_variant_without_memory_is_tried_again(
    arguments, tmp_path, capsys, monkeypatch
):
    def out_of_memory(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(experiment, "train_and_evaluate", out_of_memory)
    assert ablate.main(arguments) == 1  # as no variant has a result
    assert "baseline: RESOURCE_EXHAUSTED" in capsys.readouterr().out
    monkeypatch.setattr(experiment, "train_and_evaluate", _pretend)
    assert ablate.main(arguments) == 0
    output = capsys.readouterr().out
    assert "baseline: test accuracy" in output
    assert "RESOURCE_EXHAUSTED" not in output


def test_a_disk_that_is_full_ends_the_ablation(
    arguments, tmp_path, capsys, monkeypatch
):
    def fail(*_, **__):
        raise Failed("No space left on device; there is no checkpoint yet")

    monkeypatch.setattr(experiment, "train_and_evaluate", fail)
    assert ablate.main(arguments) == 1
    assert capsys.readouterr().err == (
        "python -m train_jax.ablate: error: No space left on device; there is no "
        "checkpoint yet\n"
    )
    assert not (tmp_path / "out" / ablate.TABLE).exists()


def test_a_folder_in_use_is_left_alone(arguments, tmp_path, capsys, monkeypatch):
    variant = tmp_path / "out" / "no_feed_forward"
    for folder in (tmp_path / "out", variant):
        held = lock.acquire(folder)
        assert ablate.main(arguments) == 2
        assert f"{str(folder)!r} is in use by process" in capsys.readouterr().err
        held.close()
    locks, train_and_evaluate = [], experiment.train_and_evaluate

    def train(config, workdir, *, should_stop, extend):
        if locks:
            return train_and_evaluate(config, workdir, should_stop=should_stop)
        locks.append(lock.acquire(variant))  # another process takes the next one
        return _pretend(config, workdir, should_stop=should_stop)

    monkeypatch.setattr(experiment, "train_and_evaluate", train)
    assert ablate.main(arguments) == 1
    assert f"{str(variant)!r} is in use by process" in capsys.readouterr().err
    assert not (variant / wd.SUMMARY).exists()
    locks[0].close()


def test_a_longer_or_another_training_may_be_asked_for(
    arguments, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(experiment, "train_and_evaluate", _pretend)
    assert ablate.main(arguments) == 0
    longer = [*arguments, "--config.num_epochs=2"]
    assert ablate.main(longer) == 2
    assert "--extend trains it on" in capsys.readouterr().err
    folder = tmp_path / "out" / "baseline"
    assert ablate.main([*longer, "--extend"]) == 0
    config = read_json(folder / wd.CONFIG)
    assert config["num_epochs"] == 2
    assert config[wd.HISTORY][0]["num_epochs"] == 1
    other = [*arguments, "--config.batch_size=32"]
    capsys.readouterr()
    assert ablate.main(other) == 2
    assert "--overwrite to delete all variants" in capsys.readouterr().err
    assert ablate.main([*other, "--overwrite"]) == 0
    config = read_json(folder / wd.CONFIG)
    assert config["batch_size"] == 32 and wd.HISTORY not in config


def test_the_folder_of_a_run_is_left_alone(arguments, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / wd.CONFIG).write_text("{}")
    assert ablate.main(arguments) == 2
    assert "is the folder of a run" in capsys.readouterr().err


def test_results_of_another_config_are_left_alone(arguments, tmp_path, capsys):
    folder = tmp_path / "out" / "baseline"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"batch_size": 7}))
    assert ablate.main(arguments) == 2
    assert "config.batch_size was 7 and is 64" in capsys.readouterr().err
