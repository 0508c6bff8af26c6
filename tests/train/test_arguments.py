"""The command line: options, fields of the config, and their help."""

import pathlib
import subprocess
import sys

import pytest

import train_jax
from train_jax.cli import arguments as cli
from train_jax.config.config import load_config
from train_jax.config.fields import TABLE
from train_jax.config.files import bundled_configs, read_config_file, split_argument


def parse(*arguments):
    parser = cli.make_parser("train.py", "Train.")
    cli.add_workdir_flag(parser)
    return cli.parse(parser, ["--config", "vit_digits", *arguments])


@pytest.mark.parametrize(
    ("arguments", "overrides"),
    [
        (["--config.seed=3"], {"seed": "3"}),
        (["--config.seed", "3"], {"seed": "3"}),
        (["--config.a.b", "x=y", "--config.c=d=e"], {"a.b": "x=y", "c": "d=e"}),
        (["--config.dataset.mean", "-0.5"], {"dataset.mean": "-0.5"}),
        (["--config.dataset.name", "-h"], {"dataset.name": "-h"}),
        (["--config.dataset.name="], {"dataset.name": ""}),
        (["--config.dataset.name", ""], {"dataset.name": ""}),
        (["--config.seed", "3", "--config.seed=4"], {"seed": "4"}),
    ],
)
def test_fields_of_the_config(arguments, overrides):
    options, found = parse(*arguments, "--workdir", "here")
    assert found == overrides
    assert options.workdir == pathlib.Path("here")
    assert parse("--workdir", "here", *arguments)[1] == overrides


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--config.seed"], "--config.seed"),
        (["--config.seed", "--workdir", "here"], "--config.seed"),
        (["--config.seed", "--config.batch_size=3"], "--config.seed"),
        (["--config.seed", "3", "4"], "4"),
    ],
)
def test_a_value_that_is_missing(capsys, arguments, named):
    with pytest.raises(SystemExit) as ended:
        parse(*arguments)
    assert ended.value.code == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line == f"train.py: error: expected --config.FIELD=VALUE, got '{named}'"


@pytest.mark.parametrize(
    ("flag", "hint"),
    [
        ("--confg.seed=3", "; did you mean --config.seed?"),
        ("--num_epochs=3", "; did you mean --config.num_epochs?"),
        ("--batchsize=3", "; did you mean --config.batch_size?"),
        ("--learning_rate=3", "; did you mean --config.optimizer.learning_rate?"),
        ("--epsilom=3", ""),
        ("seed", ""),
    ],
)
def test_a_flag_that_may_mean_a_field(capsys, flag, hint):
    with pytest.raises(SystemExit):
        parse("--config", "vit_digits", flag)
    *_, line = capsys.readouterr().err.splitlines()
    assert line.endswith(f"expected --config.FIELD=VALUE, got '{flag}'{hint}")


@pytest.mark.parametrize(
    ("config", "workdir"),
    [
        ("configs/vit_digits.py", "vit_digits"),
        ("vit_digits", "vit_digits"),
        ("here/small.py:64", "small_64"),
        ("small:64,a/b", "small_64_a_b"),
    ],
)
def test_the_default_workdir(config, workdir):
    options, _ = parse("--config", config)
    assert options.workdir == pathlib.Path("runs", workdir)


def show_help(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        parse("--help", *arguments)
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_help_lists_every_field(capsys):
    shown = show_help(capsys)
    for field, option in TABLE.items():
        assert f"  --config.{field}\n" in shown
        assert option.meaning.split()[-1] in shown
    assert "--config.model.width" not in shown
    assert max(map(len, shown.partition("bundled configs")[2].splitlines())) <= 88


def test_help_says_where_the_default_of_a_group_comes_from(capsys):
    _, _, shown = show_help(capsys).partition("--config.groups.NAME.learning_rate\n")
    meaning, _, _ = shown.partition("--config.")
    assert "default: as in optimizer)" in " ".join(meaning.split())


def test_help_lists_the_fields_of_a_model_and_of_an_optimizer(capsys):
    shown = show_help(capsys, "--config.model.name=vit", "--config.optimizer.name=sgd")
    assert "--config.model.width\n      width D of a token (an integer in [1," in shown
    assert "required)" in shown
    assert "--config.optimizer.momentum" in shown
    assert "--config.optimizer.b1" not in shown
    assert "--config.model.name\n" in show_help(capsys, "--config.model.name=vgg")


def test_help_does_not_import_jax():
    program = (
        "import sys, train\n"
        "try:\n    train.main(['--help'])\n"
        "except SystemExit:\n    sys.exit('jax' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert b"--config.optimizer.learning_rate" in done.stdout


def test_bundled_configs():
    known = bundled_configs()
    assert set(known) == {path.stem for path in pathlib.Path("configs").glob("*.py")}
    for name, path in known.items():
        assert load_config(name, {}) == load_config(str(path), {})
    assert "baseline" in read_config_file("ablation_vit_mnist", "get_variants")


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError) as caught:
        load_config("vit_mnst", {})
    assert str(caught.value) == (
        f"--config must name a readable file, or one of {', '.join(bundled_configs())},"
        " got 'vit_mnst'; did you mean vit_mnist?"
    )


def test_a_file_that_is_not_there_suggests_the_bundled_config():
    with pytest.raises(ValueError) as caught:
        load_config("configs/vit_mnst.py:9", {})
    assert str(caught.value) == (
        "--config must name a readable file, got 'configs/vit_mnst.py:9'; "
        "did you mean vit_mnist?"
    )


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("a/b.py", ["a/b.py"]),
        ("a/b.py:c:d", ["a/b.py", "c:d"]),
        ("name:x", ["name", "x"]),
        ("name", ["name"]),
        ("a/b.py:/c/d", ["a/b.py", "/c/d"]),
        ("name:/c/d", ["name", "/c/d"]),
        ("gs://bucket/a.py", ["gs://bucket/a.py"]),
        ("gs://bucket/a.py:/c", ["gs://bucket/a.py", "/c"]),
        ("C:\\a.py", ["C:\\a.py"]),
    ],
)
def test_split_argument(path, parts):
    assert split_argument(path) == parts


def test_a_package_that_is_not_installed_is_one_line():
    program = (
        "import sys; sys.modules['optax'] = None; from train_jax.train import main; "
        "sys.exit(main(['--config', 'vit_digits']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("train.py: error: ")
    assert line.endswith(': pip install "vit-resnet-jax[train]"')


def test_an_import_names_the_extra_that_is_not_installed():
    program = "import sys; sys.modules['optax'] = None; import train_jax; "
    for name in train_jax.__all__:
        done = subprocess.run(
            [sys.executable, "-c", f"{program} train_jax.{name}"],
            capture_output=True,
            text=True,
        )
        last = done.stderr.splitlines()[-1]
        assert "optax" in last and last.endswith('"vit-resnet-jax[train]"'), done.stderr
