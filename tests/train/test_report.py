"""What the user sees: the table of layers, lines of progress, lines of metrics."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from resnet_jax import ResNet
from train_jax.learning.state import count_parameters
from train_jax.output import layers, report
from train_jax.output import workdir as wd
from vit_jax import ViT

RECORD = {
    "epoch": 2,
    "step": 40,
    "train_loss": 0.5,
    "train_accuracy": 0.75,
    "val_loss": 0.25,
    "val_accuracy": 0.875,
    "learning_rate": 1e-3,
    "images_per_second": 1234.4,
    "seconds": 9.95,
}


def _open(tmp_path):
    return report.Report(tmp_path, first_step=20, total_steps=100, epochs=5)


def test_layers_add_up_to_the_model():
    inputs = (jnp.zeros((1, 8, 8, 3)),)
    vit = ViT(5, patch_size=4, width=8, depth=2, num_heads=2)
    resnet = ResNet(5, stage_sizes=(1, 1), width=4)
    for model in (vit, vit.copy(remat=True), vit.copy(scan=True), resnet):
        variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
        rows = layers.list_layers(model, variables, inputs)
        total = count_parameters(variables["params"])
        assert sum(row.num_params for row in rows) == total
        names = {row.name for row in rows}
        assert {name.split("/")[0] for name in names} == set(variables["params"])
        if isinstance(model, ViT):
            blocks = ["blocks"] if model.scan else ["block_0", "block_1"]
            assert {f"encoder/{name}" for name in [*blocks, "norm"]} < names
        assert (rows[-1].name, rows[-1].output_shape) == ("head", (1, 5))


def test_layers_are_printed_with_shapes_and_parameters(capsys):
    model = ViT(5, patch_size=4, width=8, depth=1, num_heads=2)
    layers.print_layers(model, (jnp.zeros((1, 8, 8, 3)),))
    lines = capsys.readouterr().out.splitlines()
    (embedding,) = [line for line in lines if "embedding" in line and "Dense" in line]
    assert "1 × 4 × 8" in embedding and f"{(4 * 4 * 3 + 1) * 8:,}" in embedding


def test_epoch_is_one_line_on_the_console_and_on_disk(tmp_path, capsys):
    with _open(tmp_path) as open_report:
        open_report.log_epoch(RECORD)
    assert json.loads((tmp_path / wd.METRICS).read_text()) == RECORD
    assert capsys.readouterr().out == (
        "epoch 2/5  train loss 0.5000 acc 75.00%  val loss 0.2500 acc 87.50%  "
        "1,234 img/s  9.9 s\n"
    )


def test_events_are_on_the_disk_when_an_epoch_is_logged(tmp_path):
    with _open(tmp_path) as open_report:
        open_report.log_epoch(RECORD)
        (file,) = (tmp_path / wd.TENSORBOARD).iterdir()
        content = file.read_bytes()
    for name in RECORD:
        assert (name.encode() in content) == (name not in ("epoch", "step")), name


def test_a_run_whose_result_is_not_finite_is_told(capsys):
    result = {"test_accuracy": 0.5, "test_loss": 1.0}
    runs = [
        {"seed": 1234567, **result, "diverged_in_step": None},
        {"seed": 1234568, **dict.fromkeys(result), "diverged_in_step": None},
    ]
    report._print_runs(runs)
    out = capsys.readouterr().out
    assert "1234567" in out and "1234568" in out and out.count("not finite") == 2


def test_without_a_terminal_progress_is_a_line_now_and_then(
    tmp_path, capsys, monkeypatch
):
    now = 1000.0
    monkeypatch.setattr(report.time, "monotonic", lambda: now)
    with _open(tmp_path) as open_report:
        for step, seconds in ((30, 40), (40, 40), (50, 3600), (60, 20), (70, 20)):
            now += seconds
            open_report.show_progress(step, epoch=2, loss=0.5, images_per_second=100.0)
    # 10 steps take 40 s, later 20 s; the hour that the machine slept does not count.
    assert capsys.readouterr().out == "".join(
        f"epoch 2/5  step {step}/100  loss 0.5000  100 img/s  ETA {eta}\n"
        for step, eta in ((30, "-"), (40, "0:04:00"), (50, "-"), (70, "0:01:00"))
    )


@pytest.mark.parity
def test_a_report_does_not_import_torch(tmp_path):
    pytest.importorskip("torch")
    script = """
import pathlib, sys
from train_jax.output import report
with report.Report(pathlib.Path(sys.argv[1]), first_step=0, total_steps=1, epochs=1):
    pass
print("torch" in sys.modules)
import torch
print(torch.ones(2).sum().item())
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "2.0"]
