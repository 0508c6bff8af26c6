"""`train.py` from the outside: exit codes and messages."""

import json

import pytest

import train
from tests.train.tiny import TINY

CONFIG = "configs/vit_digits.py"
SMALL = [f"--config.{field}={value}" for field, value in TINY.items()]


def fail(arguments, capsys):
    """Run train.py, which has to refuse, and return its message."""
    with pytest.raises(SystemExit) as exit_info:
        raise SystemExit(train.main(arguments))
    assert exit_info.value.code == 2
    message = capsys.readouterr().err.strip()
    return message.removeprefix("train.py: error: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.batchsize=3"], "did you mean config.batch_size?"),
        (["--config.model.name=vgg"], "config.model.name must be one of vit,"),
        (["--config.optimizer.name=lion"], "must be one of adamw, adam, sgd"),
        (["--config.optimizer.schedule=x"], "must be one of constant, cosine, linear"),
        (["--config.dataset.name=cifr10"], "dataset 'cifr10' is unknown"),
        (["--config.dataset.train_split=dev"], "dataset 'digits' has no split 'dev'"),
        (
            ["--config.model.patch_size=3"],
            "config.model: patch_size must divide the image's height and width, got "
            "patch_size 3 and an image of 8x8",
        ),
        (
            ["--config.model.num_heads=5"],
            "config.model: width must be divisible by num_heads, got width 16 and "
            "num_heads 5",
        ),
        (
            ["--config.model.dropout_rate=1.0"],
            "config.model: dropout_rate must be in [0, 1), got 1.0",
        ),
        (["--config.model.pool=max"], "config.model: pool must be 'cls' or 'mean'"),
        (
            ["--config.batch_size=400"],
            "config.batch_size must be at most 320, the number of examples in "
            "'train[:320]', got 400",
        ),
        (
            ["--config.batch_size=60"],
            "config.batch_size must be divisible by 8 (8 devices × 1 "
            "accumulation_steps), got 60",
        ),
        (["--config.num_steps=-3"], "config.num_steps must be an integer, at least 1"),
        (
            ["--config.optimizer.warmup_epochs=9"],
            "config.optimizer.warmup_epochs must be shorter than the training, got 45 "
            "of 20 steps",
        ),
        (
            ["--config.dataset.mean=(0.5,0.5,0.5)"],
            "config.dataset.mean must have 1 values",
        ),
    ],
)
def test_wrong_input_is_one_line_and_nothing_is_written(
    tmp_path, capsys, arguments, message
):
    workdir = tmp_path / "run"
    given = ["--config", CONFIG, "--workdir", str(workdir), *SMALL, *arguments]
    printed = fail(given, capsys)
    assert message in printed
    assert len(printed.splitlines()) == 1
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: --config"),
        (["--config", CONFIG, "--confg.seed=1"], "expected --config.FIELD=VALUE"),
        (["--config", CONFIG, "--config.seed"], "expected --config.FIELD=VALUE"),
        (["--config", CONFIG, "extra"], "expected --config.FIELD=VALUE, got 'extra'"),
    ],
)
def test_wrong_flags(capsys, arguments, message):
    with pytest.raises(SystemExit) as exit_info:
        train.main(arguments)
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


def test_unreadable_config_file(tmp_path, capsys):
    message = fail(["--config", str(tmp_path / "no.py")], capsys)
    assert "--config must name a readable file" in message


def test_unwritable_workdir(tmp_path, capsys):
    (tmp_path / "file").touch()
    workdir = str(tmp_path / "file" / "run")
    message = fail(["--config", CONFIG, "--workdir", workdir, *SMALL], capsys)
    assert "cannot be written" in message


def test_workdir_of_another_config(tmp_path, capsys):
    arguments = ["--config", CONFIG, "--workdir", str(tmp_path), *SMALL]
    (tmp_path / "config.json").write_text(json.dumps({"batch_size": 7}))
    before = (tmp_path / "config.json").read_bytes()
    message = fail(arguments, capsys)
    assert "config.batch_size was 7 and is 64" in message
    assert (tmp_path / "config.json").read_bytes() == before
