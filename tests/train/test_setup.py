"""Errors and warnings while a run is set up."""

import pytest

import resnet_jax
import vit_jax
from tests.train.tiny import tiny_config
from train_jax.devices import policy
from train_jax.run import build
from train_jax.run.setup import set_up
from train_jax.run.splits import load_splits

FIELD = "config.dataset."
MEANT = "if that is meant, say so by config.dataset.allow_overlap=True\n"


@pytest.mark.parametrize(
    ("changes", "warnings"),
    [
        ({"val_split": "train[320:]"}, []),
        (
            {"val_split": "train[319:]"},
            ["train_split 'train[:320]' and {}val_split 'train[319:]' share 1 exam"],
        ),
        (
            {"test_split": "train[:10%]"},
            ["train_split 'train[:320]' and {}test_split 'train[:10%]' share 144 exam"],
        ),
        (
            {"val_split": "test", "test_split": "test[300:]"},
            ["val_split 'test' and {}test_split 'test[300:]' share 60 examples"],
        ),
        ({"val_split": "test", "test_split": "test", "allow_overlap": True}, []),
    ],
)
def test_splits_with_examples_in_common_are_told(capsys, changes, warnings):
    fields = {f"dataset.{name}": value for name, value in changes.items()}
    load_splits(tiny_config(fields).dataset)
    lines = capsys.readouterr().err.splitlines(keepends=True)
    assert len(lines) == len(warnings)
    for line, warning in zip(lines, warnings, strict=True):
        assert line.startswith(f"warning: {FIELD}{warning.format(FIELD)}")
        assert line.endswith(f"; {MEANT}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_epochs": 1, "optimizer.warmup_epochs": 1}, "shorter than the training"),
        ({"model.num_heads": 3}, "width must be divisible by num_heads"),
        ({"model.dropout_rate": 1.0}, r"dropout_rate must be a number in"),
        ({"batch_size": 60}, "config.batch_size must be divisible by 8"),
        ({"dataset.name": "reverse"}, "config.model.name must be one of transformer"),
        ({"dataset.test_split": "test["}, "split 'test.' is not understood"),
    ],
)
def test_what_the_config_alone_tells_is_said_before_the_data_are_read(
    monkeypatch, changes, message
):
    monkeypatch.setattr("train_jax.data.load_splits", None)  # fails if it is called
    with pytest.raises(ValueError, match=message):
        set_up(tiny_config(changes))


def test_what_cudnn_does_not_support_is_said_in_a_line(monkeypatch):
    def refuse_to_trace(*_, **__):
        raise NotImplementedError("The head dim must be <= 128 and a multiple of 8.")

    monkeypatch.setattr(build, "init_variables", refuse_to_trace)
    with pytest.raises(ValueError, match=r"config\.model: The head dim must be"):
        set_up(tiny_config())


def test_steps_run_in_a_loop_unless_xla_convolves_on_a_cpu():
    convolve = resnet_jax.conv_general_dilated
    assert not policy.runs_steps_in_a_loop(resnet_jax.ResNet18(10))
    assert policy.runs_steps_in_a_loop(
        resnet_jax.ResNet18(10, conv_general_dilated=convolve)
    )
    assert policy.runs_steps_in_a_loop(vit_jax.ViT_S16(10))
