"""Several runs in one program equal the single runs, one by one."""

import contextlib
import io
import json

import chex
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
from train_jax.run.runs import make_runs
from train_jax.run.trained_model import load_model
from train_jax.tasks import Classification

EVERYTHING = {
    "model.mlp_ratio": None,  # compiled in less time
    "model.dropout_rate": 0.1,
    "augment.crop_padding": 1,
    "augment.mixup_alpha": 0.2,
    "accumulation_steps": 2,
    "ema_decay": 0.9,
    "num_epochs": 2,
}
FOUR = EVERYTHING | {"num_seeds": 4, "seed": 3}


def lines(workdir):
    return [json.loads(x) for x in (workdir / wd.METRICS).read_text().splitlines()]


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """Four runs together, and the first and the last of them alone.

    Returns:
        The folder of their workdirs "together", "0" and "3", their summaries by the
        same names, and what the four have printed.
    """
    folder, printed = tmp_path_factory.mktemp("four"), io.StringIO()
    with contextlib.redirect_stdout(printed):
        summaries = {"together": train_tiny(folder / "together", FOUR)}
    for run, seed in (("0", 3), ("3", 6)):
        summaries[run] = train_tiny(folder / run, EVERYTHING | {"seed": seed})
    return folder, summaries, printed.getvalue()


@pytest.mark.slow  # three runs, two of which are compiled
def test_four_seeds_equal_four_runs(four, capsys):
    """All that they report; the first and the last one are compared with runs alone."""
    folder, summaries, printed = four
    assert "±" in printed  # of each epoch
    workdir, summary = folder / "together", summaries["together"]
    assert [run["seed"] for run in summary["runs"]] == [3, 4, 5, 6]
    assert len({run["test_loss"] for run in summary["runs"]}) == 4
    for run in (0, 3):
        alone, expected = folder / str(run), summaries[str(run)]
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
    printed += capsys.readouterr().out
    assert f"{np.mean(accuracies):.2%} ± {deviation:.2%}" in printed
    assert "±  " not in printed
    assert dict(make_runs(tiny_config(FOUR)).mesh.shape) == {"run": 4, "data": 2}


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
    state = assert_equal_steps(
        RESNET | {"num_seeds": 2}, singles, devices_alone=jax.devices()[:1]
    )
    assert jax.tree.leaves(state.batch_stats)[0].shape[0] == 2


@pytest.mark.parametrize(
    ("num_seeds", "mesh", "in_turn"),
    [(1, (1, 8), False), (2, (1, 8), True), (3, (1, 8), True), (8, (8, 1), False)],
)
def test_runs_with_convolutions_share_devices_in_turn(num_seeds, mesh, in_turn):
    """At once, each device would convolve the images of all devices of its run."""
    runs = make_tiny(RESNET | {"num_seeds": num_seeds}).runs
    assert (runs.mesh.devices.shape, runs.in_turn) == (mesh, in_turn)


def test_keys_do_not_depend_on_the_default_kind():
    expected = make_runs(tiny_config({"num_seeds": 2})).keys
    with jax.default_prng_impl("rbg"):
        found = make_runs(tiny_config({"num_seeds": 2})).keys
    for name, key in expected.items():
        assert jax.random.key_impl(found[name]) == jax.random.key_impl(key)
        np.testing.assert_array_equal(
            jax.random.key_data(found[name]), jax.random.key_data(key)
        )


def test_a_single_cpu_computes_one_run_after_the_other():
    changes = {"model.dropout_rate": 0.1, "ema_decay": 0.9}
    singles = {seed: changes | {"seed": seed} for seed in (0, 1)}
    one, together = jax.devices()[:1], changes | {"num_seeds": 2}
    assert_equal_steps(together, singles, devices=one, devices_alone=one)
    runs = make_runs(tiny_config({"num_seeds": 2}), devices=one)
    assert runs.in_turn and not make_runs(tiny_config({"num_seeds": 2})).in_turn
    shared, own = np.arange(3.0), np.array([1.0, 10.0])
    found = runs.map(lambda a, b: a * b, (None, 0))(shared, own)
    np.testing.assert_array_equal(found, [[0, 1, 2], [0, 10, 20]])


@pytest.mark.slow  # compiles two programs of everything
def test_a_sweep_equals_its_runs():
    """Compared is the run of the second value; of the first one, the rate it had."""
    rates = (1e-3, 1e-2)
    changes = EVERYTHING | {"optimizer.schedule": "constant"}
    together = changes | {"sweep.optimizer.learning_rate": rates}
    singles = {1: changes | {"optimizer.learning_rate": rates[1]}}
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
    """Compared are the runs with one second value, so that each value is in one.

    Each of them differs from the run of all first values.
    """
    changes = {"optimizer.name": optimizer, "optimizer.learning_rate": 0.01}
    changes["model.mlp_ratio"] = None  # compiled in less time
    together = changes | {f"sweep.{field}": values for field, values in swept.items()}
    of_runs = make_runs(tiny_config(together)).swept
    combinations = list(zip(*(of_runs[field] for field in swept), strict=True))
    base = {field: values[0] for field, values in swept.items()}
    chosen = [base | {field: swept[field][1]} for field in swept]
    singles = {combinations.index(tuple(x.values())): changes | x for x in chosen}
    state = assert_equal_steps(together, singles, devices_alone=jax.devices()[:1])
    leaves = jax.tree.leaves(jax.device_get(state.eval_variables))
    first = combinations.index(tuple(base.values()))
    for run in singles:
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


def test_one_of_several_runs_is_loaded(four):
    folder, _, _ = four
    workdir = folder / "together"
    restored = load_model(workdir, run=3), load_model(folder / "3")
    image_BHWC = jnp.asarray(restored[0].load_test().image_BHWC[:8]) / 255
    found, expected = (
        np.asarray(run.model.apply(run.variables, image_BHWC)) for run in restored
    )
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert restored[0].step is not None
    again = load_model(workdir, run=3, checkpoint=restored[0].step)
    chex.assert_trees_all_equal(again.variables, restored[0].variables)
    with pytest.raises(ValueError, match=r"run must be in \[0, 3\], got 4"):
        load_model(workdir, run=4)
