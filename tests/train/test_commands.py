"""The real commands under odd conditions: they train, or refuse in one line."""

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time

import jax
import pytest

import train
from tests.train.command import FIELDS, environment, run, train_arguments
from train_jax.output import lock
from train_jax.output import workdir as wd
from train_jax.output.files import read_json
from train_jax.run import experiment
from train_jax.run.failures import Stopped

UNWRITABLE = "/proc/no_such_folder"

# Condition → variables, and the line that refuses.
REFUSED = {
    "no GPU": (
        {"JAX_PLATFORMS": "cuda"},
        "JAX has no device to compute on, JAX_PLATFORMS is 'cuda': no such device",
    ),
    "an unknown platform": (
        {"JAX_PLATFORMS": "abacus"},
        "JAX has no device to compute on, JAX_PLATFORMS is 'abacus': Unable to "
        "initialize backend 'abacus': .*",
    ),
    "an address for the cache": (
        {"XDG_CACHE_HOME": "gs://bucket/x", "JAX_COMPILATION_CACHE_DIR": ""},
        "XDG_CACHE_HOME must be a path on this machine, got the address 'gs://bucket/x'",
    ),
}

# Condition → arguments, and the line that refuses.
REFUSED_ARGUMENTS = {
    "an address for the folder": (
        ["--workdir=s3://bucket/run"],
        "--workdir must be a path on this machine or gs://BUCKET/FOLDER, got "
        "'s3://bucket/run'",
    ),
    "an address for the config": (
        ["--config=https://example.org/config.py"],
        "--config must be a path on this machine, got the address "
        "'https://example.org/config.py'",
    ),
    "an address for the archives": (
        ["--config.dataset.name=mnist", "--config.dataset.manual_dir=s3://b"],
        ".*manual_dir must be a path on this machine, got the address 's3://b'",
    ),
    "the home of nobody": (
        ["--workdir=~no_such_user/run"],
        "--workdir '~no_such_user/run': there is no such home folder",
    ),
    "a name of 300 characters": (
        ["--workdir=" + 300 * "x"],
        "--workdir 'x{300}': File name too long",
    ),
    "a config's name of 300 characters": (
        ["--config=" + 300 * "x"],
        "--config must name a readable file, or one of [a-z0-9_, ]+, got 'x{300}'",
    ),
}


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    """A folder for caches; empty before the first start."""
    return tmp_path_factory.mktemp("caches")


def default_environment(caches, **variables):
    """An environment in which nothing is said about compiled programs."""
    unsaid = {
        "JAX_COMPILATION_CACHE_DIR": "",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1",  # JAX's default
    }
    return environment(caches, XDG_CACHE_HOME=str(caches), **unsaid, **variables)


@pytest.fixture(scope="module")
def finished(caches, tmp_path_factory):
    """The folder of a run that train.py has finished."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    done = run(train_arguments(workdir), default_environment(caches))
    assert done.returncode == 0, done.stderr.decode()
    return workdir


@pytest.fixture(scope="module")
def compiled(finished, caches):
    """The folder of the programs that the first start has compiled."""
    (folder,) = caches.glob("vit-resnet-jax/compiled-*")
    return folder


def results(workdir):
    """A run's summary, without times."""
    timing = ("train_seconds", "images_per_second")
    summary = read_json(workdir / wd.SUMMARY)
    return {k: v for k, v in summary.items() if k not in timing}


@pytest.mark.slow  # two starts, one of them without compiled programs
def test_the_module_does_what_train_py_does(finished, compiled, caches, tmp_path):
    """Also on a terminal of ASCII, and in a folder that begins with ~, for HOME.

    As the second start, it compiles nothing.
    """

    def programs():
        # Small ones are kept only if they happened to take 0.1 s.
        return {path.name for path in compiled.glob("*take_steps*-cache")}

    before = programs()
    assert len(before) == 1
    arguments = ["--config", "vit_digits", "--workdir", "~/run"]
    for field, value in FIELDS.items():
        arguments += [f"--config.{field}", str(value)]
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    variables = default_environment(caches, HOME=str(tmp_path), **ascii_only)
    done = run(arguments, variables, module="train_jax.train")
    assert (done.returncode, done.stderr) == (0, b"")
    workdir = tmp_path / "run"
    assert f"results in {workdir}" in done.stdout.decode()
    assert results(workdir) == results(finished)
    assert programs() == before


_TRAIN_AND_EVALUATE = """
import json, sys
import train_jax
assert not {"jax", "tensorflow"} & sys.modules.keys()
from train_jax import train_and_evaluate
from train_jax.run import experiment
experiment._plot = lambda *_: None
from configs.vit_digits import get_config
config = get_config()
with config.unlocked(), config.ignore_type():
    config.update_from_flattened_dict(json.loads(sys.argv[2]))
summary = train_and_evaluate(config, sys.argv[1])
with open(f"{sys.argv[1]}/summary.json") as file:
    assert summary == json.load(file)
assert train_and_evaluate(config, sys.argv[1]) == summary
"""


def test_the_function_does_what_train_py_does(finished, compiled, tmp_path):
    workdir = tmp_path / "run"
    command = [sys.executable, "-c", _TRAIN_AND_EVALUATE]
    subprocess.run(
        [*command, str(workdir), json.dumps(FIELDS)],
        env=environment(compiled),
        check=True,
    )
    assert results(workdir) == results(finished)


def test_a_cache_folder_that_cannot_be_written_is_a_warning(finished):
    folder = {"XDG_CACHE_HOME": UNWRITABLE, "JAX_COMPILATION_CACHE_DIR": ""}
    done = run(train_arguments(finished), os.environ | folder)
    assert done.returncode == 0
    (line,) = done.stderr.decode().splitlines()
    assert re.fullmatch(
        f"warning: compiled programs are not kept, '{UNWRITABLE}/vit-resnet-jax/"
        r"compiled-\w+' cannot be written: No such file or directory",
        line,
    )


@pytest.mark.parametrize("condition", REFUSED)
def test_it_refuses(compiled, tmp_path, condition):
    variables, expected = REFUSED[condition]
    command = train_arguments(tmp_path / "run")
    done = run(command, environment(compiled) | variables)
    assert done.returncode == 2
    assert_refused(done.stderr.decode(), expected)
    assert not (tmp_path / "run").exists()


def assert_refused(error, expected):
    """What a command has printed ends with this line; before it is only the usage."""
    *usage, line = error.splitlines()
    assert re.fullmatch(f"train.py: error: {expected}", line)
    assert all(u.startswith(("usage:", " ")) for u in usage)


@pytest.mark.parametrize("condition", REFUSED_ARGUMENTS)
def test_it_refuses_arguments(tmp_path, capsys, condition):
    arguments, expected = REFUSED_ARGUMENTS[condition]
    before = set(os.listdir())
    try:
        code = train.main([*train_arguments(tmp_path / "run"), *arguments])
    except SystemExit as end:  # of argparse
        code = end.code
    assert code == 2
    assert_refused(capsys.readouterr().err, expected)
    assert not (tmp_path / "run").exists() and set(os.listdir()) == before


# Runs commands one after the other; prints the exit code and the output of each.
_COMMANDS = """
import contextlib, io, json, sys
from train_jax import explain, train

mains, done = {"train": train.main, "explain": explain.main}, []
for name, arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = mains[name](arguments)
    done.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(done))
"""


def test_a_run_that_is_read_only(finished, compiled, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "run")
    everything = [workdir, *workdir.rglob("*")]
    for path in everything:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = {p: p.read_bytes() for p in everything if p.is_file()}

    commands = [
        ("train", train_arguments(workdir)),
        ("train", [*train_arguments(workdir, num_steps=3), "--extend"]),
        ("explain", ["--workdir", str(workdir)]),
    ]
    variables, argument = environment(compiled), json.dumps(commands)
    done = run([argument], variables, program=_COMMANDS, heeds_modes=True)
    assert (done.returncode, done.stderr) == (0, b"")
    again, *failed = json.loads(done.stdout)
    assert again[0] == 0
    assert "this run is finished already\ntest accuracy" in again[1]
    for code, _, error in failed:
        assert code == 2
        assert error.count("\n") == 1
        assert str(workdir) in error
        assert "Permission denied" in error
    assert {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()} == before


def test_an_expired_lock_of_another_machine_is_taken_over(
    tmp_path, capsys, monkeypatch
):
    locks = []

    def train_no_further(workdir, *_):
        locks.extend(path.name for path in workdir.glob("lock.*"))
        raise Stopped("stopped after step 0 of 2")

    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.5)
    monkeypatch.setattr(experiment, "_train", train_no_further)
    workdir = tmp_path / "run"
    workdir.mkdir()
    arguments = train_arguments(workdir, batch_size=8 * jax.device_count())
    holder = {"pid": 17, "start": "1", "host": "colab-7", "machine": "another one"}
    for age, code in ((lock.LEASE_SECONDS - 60, 2), (lock.LEASE_SECONDS + 1, 75)):
        text = json.dumps(holder | {"renewed": time.time() - age})
        (workdir / "lock.1").write_text(text)
        assert train.main(arguments) == code
        if code == 2:
            assert [path.name for path in workdir.iterdir()] == ["lock.1"]
            assert capsys.readouterr().err == (
                f"train.py: error: --workdir '{workdir}' is in use by process 17 on "
                "host colab-7; if that machine is lost, start again in 60 s\n"
            )
    assert locks == ["lock.2"] and not list(workdir.glob("lock.*"))


# Does what train.py does, but for the plots, which are a third of the time.
_WITHOUT_PLOTS = """
import sys
from train_jax import train
from train_jax.run import experiment

experiment._plot = lambda *_: None
sys.exit(train.main(sys.argv[1:]))
"""


def test_a_closed_pipe_does_not_end_the_training(compiled, tmp_path):
    workdir = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-c", _WITHOUT_PLOTS, *train_arguments(workdir)],
        env=environment(compiled),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    assert (process.wait(timeout=60), error) == (0, b"")
    assert (workdir / wd.SUMMARY).exists()


def test_a_closed_stdout_does_not_end_the_training(compiled, tmp_path):
    command = ["-c", _WITHOUT_PLOTS, *train_arguments(tmp_path / "run")]
    assert run_in_bash(command, ">&- 2>&-", compiled) == 0
    assert (tmp_path / "run" / wd.SUMMARY).exists()


def test_a_full_disk_under_stdout_is_no_failure(finished, compiled):
    command = ["train.py", *train_arguments(finished)]
    assert run_in_bash(command, "> /dev/full 2>&1", compiled) == 0


def run_in_bash(command, redirection, compiled):
    """Run Python with another stdout and stderr; returns the exit status."""
    shell = ["bash", "-c", f'"$@" {redirection}', "bash", sys.executable]
    return subprocess.call([*shell, *command], env=environment(compiled))


@pytest.mark.parametrize(
    ("module", "number"),
    [
        ("argparse", signal.SIGINT),
        ("numpy", signal.SIGTERM),
        ("train_jax.run.loop", signal.SIGINT),
        ("sklearn.utils", signal.SIGTERM),  # while the data are loaded
    ],
)
def test_a_signal_before_the_training_ends_it(compiled, tmp_path, module, number):
    workdir = tmp_path / "run"
    command = [sys.executable, "-X", "importtime", "train.py"]
    process = subprocess.Popen(
        [*command, *train_arguments(workdir, num_steps=100_000)],
        env=environment(compiled, XDG_CACHE_HOME=str(tmp_path)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    lines, is_sent = [], False
    for line in process.stderr:
        if not line.startswith("import time:"):
            lines.append(line)
        elif not is_sent and line.rpartition("|")[2].strip() == module:
            process.send_signal(number)
            is_sent = True
    process.stderr.close()
    assert process.wait(timeout=60) == 75
    assert is_sent
    assert lines == ["train.py: stopped before the training began\n"]
    assert not workdir.exists()


# Takes so long to save that a second interrupt comes before the end.
_SAVING_SLOWLY = """
import sys, time
from train_jax import train
from train_jax.output.checkpoint import Checkpoints

save = Checkpoints.save

def save_slowly(*arguments, **how):
    time.sleep(20)
    save(*arguments, **how)

Checkpoints.save = save_slowly
sys.exit(train.main(sys.argv[1:]))
"""


def test_two_interrupts_leave_a_terminal_with_its_cursor(compiled, tmp_path):
    terminal, screen = pty.openpty()
    arguments = train_arguments(tmp_path / "run", num_steps=10_000_000)
    process = subprocess.Popen(
        [sys.executable, "-c", _SAVING_SLOWLY, *arguments],
        env=environment(compiled, TERM="xterm"),
        stdin=screen,
        stdout=screen,
        stderr=screen,
        start_new_session=True,
    )
    os.close(screen)
    shown = b""

    def read_until(text: bytes) -> None:
        nonlocal shown
        end = time.monotonic() + 60
        while text not in shown and time.monotonic() < end:
            if select.select([terminal], [], [], 1)[0]:
                try:
                    shown += os.read(terminal, 4096)
                except OSError:  # the other end is closed
                    break
        assert text in shown, shown

    read_until(b"epoch 1")
    assert b"\x1b[?25l" in shown  # the progress bar hides the cursor
    process.send_signal(signal.SIGINT)
    read_until(b"press Ctrl-C again")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130  # 75, if it had saved
    while select.select([terminal], [], [], 0)[0]:
        try:
            shown += os.read(terminal, 4096)
        except OSError:  # the other end is closed, and all is read
            break
    os.close(terminal)
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l")
