"""What is found out while a run is set up."""

import pytest

from tests.train.tiny import tiny_config
from train_jax import experiment


@pytest.mark.parametrize(
    "val_split, is_warned", [("train[319:]", True), ("train[320:]", False)]
)
def test_validation_on_training_examples_is_told(capsys, val_split, is_warned):
    config = tiny_config({"dataset.val_split": val_split})
    assert config.dataset.train_split == "train[:320]"
    train, val, _ = experiment.load_splits(config)
    assert (len(train), len(val)) == (320, 1437 - int(val_split[6:9]))
    warning = capsys.readouterr().err
    assert warning == (
        "warning: config.dataset.val_split 'train[319:]' has examples in common with "
        "config.dataset.train_split 'train[:320]'\n"
        if is_warned
        else ""
    )


def test_what_cudnn_does_not_support_is_said_in_a_line(tmp_path, monkeypatch):
    def refuse_to_trace(*_, **__):
        raise NotImplementedError("The head dim must be <= 128 and a multiple of 8.")

    monkeypatch.setattr(experiment, "init_variables", refuse_to_trace)
    with pytest.raises(ValueError, match=r"config\.model: The head dim must be"):
        experiment.set_up(tiny_config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
