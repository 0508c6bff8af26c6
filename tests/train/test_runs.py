"""Several runs in one program equal the single runs, one by one."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.train.tiny import (
    RESNET,
    losses_of_steps,
    make_tiny,
    tiny_config,
    train_tiny,
)
from train_jax.learning.optim import last_learning_rate
from train_jax.output import report
from train_jax.output import workdir as wd
from train_jax.run.failures import Diverged
from train_jax.run.initial_state import make_runs
from train_jax.run.trained_model import load_model
from train_jax.tasks import Classification

EVERYTHING = {
    "model.dropout_rate": 0.1,
    "augment.crop_padding": 1,
    "augment.mixup_alpha": 0.2,
    "accumulation_steps": 2,
    "ema_decay": 0.9,
    "num_epochs": 2,
}


def lines(workdir):
    return [json.loads(x) for x in (workdir / wd.METRICS).read_text().splitlines()]


@pytest.mark.slow  # three runs, each compiled
def test_four_seeds_equal_four_runs(tmp_path, capsys):
    """All that they report; the first and the last one are compared with runs alone."""
    together = EVERYTHING | {"num_seeds": 4, "seed": 3}
    workdir = tmp_path / "together"
    summary = train_tiny(workdir, together)
    assert [run["seed"] for run in summary["runs"]] == [3, 4, 5, 6]
    assert len({run["test_loss"] for run in summary["runs"]}) == 4
    for run, seed in ((0, 3), (3, 6)):
        alone = tmp_path / str(run)
        expected = train_tiny(alone, EVERYTHING | {"seed": seed})
        found = summary["runs"][run]
        assert found["seed"] == expected["seed"]
        for name in ("test_loss", "val_loss", "test_accuracy", "val_accuracy"):
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-4)
        for line, expected_line in zip(lines(workdir), lines(alone), strict=True):
            for name in ("train_loss", "train_accuracy", "learning_rate", "val_loss"):
                np.testing.assert_allclose(
                    line[name][run], expected_line[name], rtol=1e-4, err_msg=name
                )
    accuracies = [run["test_accuracy"] for run in summary["runs"]]
    np.testing.assert_allclose(summary["test_accuracy"], np.mean(accuracies))
    deviation = np.std(accuracies, ddof=1)
    np.testing.assert_allclose(summary["test_accuracy_std"], deviation, atol=1e-9)
    report.print_summary(summary, workdir)
    printed = capsys.readouterr().out
    assert f"{np.mean(accuracies):.2%} ± {deviation:.2%}" in printed
    assert "±  " not in printed
    assert dict(make_runs(tiny_config(together)).mesh.shape) == {"run": 4, "data": 2}


def assert_equal_steps(together, singles, *, devices=None, devices_alone=None):
    """Take ten steps of runs together and of some of them alone, and compare.

    Args:
        together: changes of the config.
        singles: number of a run → changes of the config with which it runs alone.
        devices: of the runs together; all of them if not given.
        devices_alone: of those alone, likewise. On a single device a run takes the same
            steps, see test_devices.py, and is compiled in less time.

    Returns:
        The last state of the runs together.
    """
    parts = make_tiny(together, has_noise=True, devices=devices)
    losses, state = losses_of_steps(parts, num_steps=10)
    for run, single in singles.items():
        alone = make_tiny(single, has_noise=True, devices=devices_alone)
        expected_losses, expected = losses_of_steps(alone, num_steps=10)
        np.testing.assert_allclose(losses[:, run], expected_losses, rtol=1e-5)
        of_run = parts.runs.select(state.eval_variables, run)
        np.testing.assert_allclose(
            optax.tree.norm(of_run), optax.tree.norm(expected.eval_variables), rtol=1e-5
        )
    return state


def test_seeds_of_a_resnet_equal_single_runs():
    singles = {seed: RESNET | {"seed": seed} for seed in (0, 1)}
    state = assert_equal_steps(RESNET | {"num_seeds": 2}, singles)
    assert jax.tree.leaves(state.batch_stats)[0].shape[0] == 2


def test_a_single_cpu_computes_one_run_after_the_other():
    changes = {"model.dropout_rate": 0.1, "ema_decay": 0.9}
    singles = {seed: changes | {"seed": seed} for seed in (0, 1)}
    assert_equal_steps(changes | {"num_seeds": 2}, singles, devices=jax.devices()[:1])
    runs = make_runs(tiny_config({"num_seeds": 2}), devices=jax.devices()[:1])
    assert runs.in_turn and not make_runs(tiny_config({"num_seeds": 2})).in_turn
    shared, own = np.arange(3.0), np.array([1.0, 10.0])
    found = runs.map(lambda a, b: a * b, (None, 0))(shared, own)
    np.testing.assert_array_equal(found, [[0, 1, 2], [0, 10, 20]])


@pytest.mark.slow  # compiles three programs of everything
def test_a_sweep_equals_its_runs():
    rates = (1e-3, 1e-2)
    changes = EVERYTHING | {"optimizer.schedule": "constant"}
    together = changes | {"sweep.optimizer.learning_rate": rates}
    singles = {
        run: changes | {"optimizer.learning_rate": rate}
        for run, rate in enumerate(rates)
    }
    state = assert_equal_steps(together, singles, devices_alone=jax.devices()[:1])
    found = last_learning_rate(state.opt_state)
    np.testing.assert_allclose(found, rates, rtol=1e-6)


@pytest.mark.parametrize(
    ("optimizer", "swept"),
    [
        (
            "adamw",
            {
                "optimizer.weight_decay": (0.0, 10.0),
                "optimizer.b1": (0.5, 0.9),
                "optimizer.b2": (0.5, 0.999),
            },
        ),
        (
            "adamw",
            {
                "optimizer.eps": (1e-8, 1e-2),
                "label_smoothing": (0.0, 0.3),
                "ema_decay": (0.05, 0.9),
            },
        ),
        # With steps as short as the second norm's, momentum would hardly count.
        ("sgd", {"optimizer.clip_norm": (1.0, 0.01), "optimizer.momentum": (0.0, 0.9)}),
    ],
)
def test_every_field_that_can_be_swept(optimizer, swept):
    """Compared are the run of all first values and those with one second value."""
    changes = {"optimizer.name": optimizer, "optimizer.learning_rate": 0.01}
    changes["model.mlp_ratio"] = None  # compiled in less time
    together = changes | {f"sweep.{field}": values for field, values in swept.items()}
    of_runs = make_runs(tiny_config(together)).swept
    combinations = list(zip(*(of_runs[field] for field in swept), strict=True))
    base = {field: values[0] for field, values in swept.items()}
    chosen = [base, *(base | {field: swept[field][1]} for field in swept)]
    singles = {combinations.index(tuple(x.values())): changes | x for x in chosen}
    state = assert_equal_steps(together, singles, devices_alone=jax.devices()[:1])
    leaves = jax.tree.leaves(jax.device_get(state.eval_variables))
    first, *others = singles
    for run in others:
        differences = [np.abs(leaf[first] - leaf[run]).max() for leaf in leaves]
        assert max(differences) > 1e-4, combinations[run]


def test_sweeps_and_seeds_are_combined():
    fields = {"label_smoothing": (0.0, 0.1), "optimizer.b1": (0.8,)}
    given = {f"sweep.{field}": values for field, values in fields.items()}
    runs = make_runs(tiny_config(given | {"num_seeds": 2, "seed": 5}))
    assert runs.seeds == (5, 6, 5, 6)
    assert runs.swept == {
        "label_smoothing": (0.0, 0.0, 0.1, 0.1),
        "optimizer.b1": (0.8,) * 4,
    }
    assert runs.names[2] == "b1 0.8, label_smoothing 0.1, seed 5"


def test_a_run_that_diverges_leaves_the_others_alone(tmp_path, capsys):
    changes = {"optimizer.name": "sgd", "num_epochs": 2}
    rates = (0.1, 1e30)
    workdir = tmp_path / "run"
    summary = train_tiny(workdir, changes | {"sweep.optimizer.learning_rate": rates})
    good, diverged = summary["runs"]
    alone = train_tiny(tmp_path / "alone", changes | {"optimizer.learning_rate": 0.1})
    np.testing.assert_allclose(good["test_loss"], alone["test_loss"], rtol=1e-4)
    assert summary["test_accuracy"] == good["test_accuracy"]
    assert diverged["test_accuracy"] is None
    assert diverged["diverged_in_step"] in (2, 3)
    assert lines(workdir)[-1]["train_loss"][1] is None
    report.print_summary(summary, workdir)
    assert "diverged in step" in " ".join(capsys.readouterr().out.split())


def test_pictures_are_of_a_run_that_did_not_diverge(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        Classification, "plot", lambda *arguments: drawn.append(arguments[-2])
    )
    changes = {"optimizer.name": "sgd", "num_epochs": 1, "dataset.val_split": None}
    changes["sweep.optimizer.learning_rate"] = (1e30, 0.1)
    train_tiny(tmp_path, changes, has_plots=True)
    assert np.isfinite(drawn[0]).all()


def test_when_all_runs_diverge_it_is_over(tmp_path):
    changes = {"optimizer.name": "sgd", "optimizer.learning_rate": 1e30}
    with pytest.raises(Diverged, match="not finite in step"):
        train_tiny(tmp_path, changes | {"num_seeds": 2})


def test_one_of_several_runs_is_loaded(tmp_path):
    workdir, alone = tmp_path / "run", tmp_path / "alone"
    train_tiny(workdir, {"num_seeds": 2, "num_epochs": 1})
    train_tiny(alone, {"seed": 1, "num_epochs": 1})
    restored = load_model(workdir, run=1), load_model(alone)
    image_BHWC = jnp.asarray(restored[0].load_test().image_BHWC[:8]) / 255
    found, expected = (
        np.asarray(run.model.apply(run.variables, image_BHWC)) for run in restored
    )
    np.testing.assert_allclose(found, expected, atol=1e-3)
    with pytest.raises(ValueError, match=r"--run must be in \[0, 1\], got 2"):
        load_model(workdir, run=2)
