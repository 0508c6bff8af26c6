"""Ablations: every variant is trained once, whatever happens, and compared."""

import csv
import json
import re

import pytest

from train_jax import ablate, loop

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


def test_variants_are_trained_once_and_failures_are_told(
    arguments, tmp_path, capsys, monkeypatch
):
    train, trained = loop.train_and_evaluate, []

    def interrupt(ready):
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append(ready.workdir)
        return train(ready)

    monkeypatch.setattr(loop, "train_and_evaluate", interrupt)
    assert ablate.main(arguments) == 130
    assert not (tmp_path / "out" / ablate.TABLE).exists()
    monkeypatch.setattr(
        loop, "train_and_evaluate", lambda r: trained.append(r.workdir) or train(r)
    )
    assert ablate.main(arguments) == 0
    # Those of three heads cannot be built; nothing was trained twice.
    assert len(trained) == len(set(trained)) == 6

    output = capsys.readouterr().out
    assert output.count("done before") == 3
    with (tmp_path / "out" / ablate.TABLE).open() as file:
        rows = {(row["variant"], row["seed"]): row for row in csv.DictReader(file)}
    assert len(rows) == 8
    assert "num_heads 3" in rows["three heads", "1"]["error"]
    assert "the loss became" in rows["diverging", "0"]["error"]
    for variant in ("baseline", "no feed-forward"):
        for seed in "01":
            row = rows[variant, seed]
            folder = tmp_path / "out" / re.sub(r"\W+", "_", variant) / f"seed_{seed}"
            summary = json.loads((folder / "summary.json").read_text())
            assert float(row["test_accuracy"]) == summary["test_accuracy"]
            assert summary["seed"] == int(seed)
    parameters = {row["num_params"] for row in rows.values()} - {""}
    assert len(parameters) == 2
    lines = [line for line in output.splitlines() if "three heads" in line]
    assert "failed" in lines[-1] and "0/2" in lines[-1]
    assert (tmp_path / "out" / ablate.PICTURE).stat().st_size > 5_000

    assert ablate.main(arguments) == 0
    assert len(trained) == 6


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("model.mlp_ratio", "model.mlp", "variant 'no feed-forward': config.model.mlp"),
        ("def get_variants", "def variants", "has no attribute 'get_variants'"),
        ("SEEDS = (0, 1)", "SEEDS = (-1,)", "config.seed must be an integer"),
    ],
)
def test_mistakes_in_the_config_are_found_before_training(
    arguments, tmp_path, capsys, old, new, message
):
    (tmp_path / "config.py").write_text(CONFIG.replace(old, new))
    assert ablate.main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_results_of_another_config_are_left_alone(arguments, tmp_path, capsys):
    folder = tmp_path / "out" / "baseline" / "seed_0"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"batch_size": 7}))
    assert ablate.main(arguments) == 2
    assert "config.batch_size was 7 and is 64" in capsys.readouterr().err
