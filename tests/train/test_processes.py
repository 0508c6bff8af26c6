"""Several processes of one run: the same losses, one set of files, one end."""

import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np
import pytest

from tests.train.tiny import TINY
from train_jax.config.config import load_config
from train_jax.devices import processes
from train_jax.output import checkpoint
from train_jax.output import workdir as wd
from train_jax.output.files import read_json
from train_jax.run import experiment
from train_jax.run.splits import load_dataset

CONFIG = "configs/vit_digits.py"

# A program that is compiled in less time.
SIMPLE = {"model.mlp_ratio": None, "optimizer.name": "sgd"}


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory):
    """Let processes that start later find what the first ones have compiled."""
    with pytest.MonkeyPatch.context() as patch:
        folder = str(tmp_path_factory.mktemp("compiled"))
        patch.setenv("JAX_COMPILATION_CACHE_DIR", folder)
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
        yield


# A process that hangs is noticed sooner than usual; LLVM makes as little effort as in
# the tests' own process; nobody reads the table of layers.
TRAIN = """
import sys
from train_jax import train
from train_jax.devices import compiler, processes
from train_jax.run import experiment
heartbeat, plots, *arguments = sys.argv[1:]
compiler._LLVM_LEVEL = 0
processes._HEARTBEAT_SECONDS = int(heartbeat)
experiment.print_layers = lambda *_: None
if plots == "without plots":
    experiment._plot = lambda *_: None
sys.exit(train.main(arguments))
"""

# What is said of a process that is lost: by JAX, or by the others before they end.
LOST = "another task died|another process of the run was lost"


def start(workdir, output, *, index, port, changes, heartbeat, has_plots):
    """Start one of two processes of a run, each on two devices."""
    fields = [f"--config.{k}={v}" for k, v in (TINY | changes).items()]
    flags = ["--coordinator", f"localhost:{port}"]
    flags += ["--num_processes", "2", "--process_id", str(index)]
    xla_flags = "--xla_force_host_platform_device_count=2"
    xla_flags += " --xla_backend_optimization_level=0"
    environment = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags}
    plots = "with plots" if has_plots else "without plots"
    command = [sys.executable, "-c", TRAIN, str(heartbeat), plots]
    command += ["--config", CONFIG, "--workdir", str(workdir), *fields]
    with output.open("w") as file:
        return subprocess.Popen(
            command + flags,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
        )


# Each worker of the tests has so many ports, and begins with any of them.
_NUM_PORTS = 100
_numbers = itertools.count(os.getpid())


def free_port():
    """A port that nobody listens on, nor will before it is used, seconds later.

    It lies below those from which the system takes any that is free.
    """
    system = pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range")  # of Linux
    end = 32768
    if system.exists():
        end = int(system.read_text("utf-8").split()[0])
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    start = max(1024, end - _NUM_PORTS * (worker + 1))
    for number in itertools.islice(_numbers, _NUM_PORTS):
        port = start + number % _NUM_PORTS
        with contextlib.suppress(OSError), socket.socket() as listener:
            listener.bind(("", port))
            return port
    raise AssertionError(f"no port from {start} on is free")


def start_two(workdir, tmp_path, changes, *, heartbeat=8, has_plots=False):
    """Start both processes of a run, and say where they print.

    Args:
        workdir: the run's folder.
        tmp_path: folder for what they print.
        changes: of the config.
        heartbeat: after so many seconds without one a process is lost.
        has_plots: whether plots are drawn.
    """
    how = {"changes": changes, "heartbeat": heartbeat, "has_plots": has_plots}
    how["port"] = free_port()
    outputs = [tmp_path / f"output_{index}.txt" for index in (0, 1)]
    return outputs, [start(workdir, outputs[i], index=i, **how) for i in (0, 1)]


def results(workdir):
    """The metrics of a run, without those that tell of time."""
    timing = ("seconds", "images_per_second")
    lines = [json.loads(x) for x in (workdir / wd.METRICS).read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in timing} for line in lines]


@pytest.mark.slow  # two processes
def test_two_processes_equal_one(tmp_path, monkeypatch):
    """They start from the weights of a run, but for the head, which each seed draws."""

    def train(workdir, changes):
        fields = {field: str(value) for field, value in (TINY | changes).items()}
        experiment.train_and_evaluate(load_config(CONFIG, fields), workdir)

    def load_renamed(*args, **how):
        names = tuple("abcdefghij")
        splits = load_dataset(*args, **how)
        return [dataclasses.replace(split, class_names=names) for split in splits]

    # Of the three, the run of two processes draws plots.
    for name in ("_plot", "print_layers"):
        monkeypatch.setattr(experiment, name, lambda *_: None)
    changes = {"model.dropout_rate": 0.1}
    source = {"optimizer.name": "sgd", "optimizer.learning_rate": 0.1, "num_steps": 2}
    with monkeypatch.context() as patch:
        # A head for classes of other names is not taken over.
        patch.setattr("train_jax.run.setup.load_dataset", load_renamed)
        train(tmp_path / "source", changes | source)
    changes |= {"num_seeds": 2, "fsdp": True, "init_from": str(tmp_path / "source")}
    outputs, both = start_two(tmp_path / "two", tmp_path, changes, has_plots=True)
    train(tmp_path / "one", changes)
    assert [p.wait() for p in both] == [0, 0], [x.read_text() for x in outputs]
    found, expected = results(tmp_path / "two"), results(tmp_path / "one")
    assert len(found) == len(expected) == 4
    for line, expected_line in zip(found, expected, strict=True):
        for name, value in expected_line.items():
            np.testing.assert_allclose(line[name], value, rtol=1e-5, err_msg=name)
    events = list((tmp_path / "two" / wd.TENSORBOARD).iterdir())
    assert len(events) == 1  # one process has written
    assert (tmp_path / "two" / wd.PLOTS / "attention.png").exists()
    assert "epoch 4/4" in outputs[0].read_text()
    assert "epoch" not in outputs[1].read_text()
    summaries = [read_json(tmp_path / x / wd.SUMMARY) for x in ("two", "one")]
    np.testing.assert_allclose(*(s["test_loss"] for s in summaries), rtol=1e-5)


@pytest.mark.slow  # twice two processes
def test_when_one_process_hangs_the_other_ends_and_the_run_is_intact(tmp_path):
    changes = {"num_epochs": 100_000, "checkpoint.every_epochs": 2} | SIMPLE
    runs = []
    for stopped in (0, 1):
        folder = tmp_path / f"{stopped}_stops"
        folder.mkdir()
        outputs, both = start_two(folder / "run", folder, changes, heartbeat=5)
        # By then its first checkpoint is complete: the second save waits for it.
        wait_for_epochs(folder / "run", 5, both)
        before = checkpoint.find(folder / "run" / wd.CHECKPOINTS, "last")
        both[stopped].send_signal(signal.SIGSTOP)
        runs.append((folder / "run", before, both, 1 - stopped, outputs[1 - stopped]))
    try:
        for _, _, both, other, _ in runs:
            assert both[other].wait(timeout=120) != 0
    finally:
        for process in (process for _, _, both, _, _ in runs for process in both):
            process.kill()
            process.wait()
    for workdir, before, _, _, output in runs:
        assert re.search(LOST, output.read_text())
        step = checkpoint.find(workdir / wd.CHECKPOINTS, "last")
        assert step is not None and before is not None and step >= before
        assert len(results(workdir)) >= 5


@pytest.mark.slow  # six processes
@pytest.mark.usefixtures("programs")  # which wait meanwhile
def test_two_processes_lock_their_folder_and_end_together(tmp_path):
    workdir = tmp_path / "run"
    changes = {"num_epochs": 100_000, "checkpoint.every_epochs": 5} | SIMPLE
    outputs, both = start_two(workdir, tmp_path, changes)
    wait_for_epochs(workdir, 6, both)
    assert [path.name for path in workdir.glob("lock.*")] == ["lock.1"]
    (tmp_path / "second").mkdir()
    refusals, second = start_two(workdir, tmp_path / "second", changes)
    assert [p.wait(timeout=60) for p in second] == [2, 2]
    for refusal in refusals:
        refused = rf"--workdir '{workdir}' is in use by process {both[0].pid} on host"
        assert re.search(f"train.py: error: {refused}", refusal.read_text())

    both[1].send_signal(signal.SIGTERM)
    assert [p.wait(timeout=60) for p in both] == [75, 75], outputs[0].read_text()
    assert "the same command resumes from there" in outputs[0].read_text()
    assert not list(workdir.glob("lock.*"))
    step = checkpoint.find(workdir / wd.CHECKPOINTS, "last")
    assert step is not None and step >= 30

    epochs = len((workdir / wd.METRICS).read_text().splitlines())
    outputs, both = start_two(workdir, tmp_path, changes)
    wait_for_epochs(workdir, epochs + 3, both)
    assert f"resuming after step {step}" in outputs[0].read_text()
    both[1].kill()
    assert both[0].wait(timeout=60) != 0
    # Gloo may end the process before anything is said.
    said = outputs[0].read_text()
    by_gloo = both[0].returncode < 0 and "gloo" in said.lower()
    assert re.search(LOST, said) or by_gloo, said
    both[1].wait()


def start_program(program):
    """Start a program in two processes, with a port and their index as arguments."""
    command = [sys.executable, "-c", program, str(free_port())]
    how: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return [
        subprocess.Popen([*command, index], env=environment, **how)
        for index in ("0", "1")
    ]


AT_THE_END = """
import sys, time
from train_jax.devices import processes
port, index = sys.argv[1:]
processes._HEARTBEAT_SECONDS = 3
processes.join(f"localhost:{port}", 2, int(index))
processes.max_over_processes(0)
if index == "0":
    time.sleep(6)
"""

FAILS_ALONE = """
import sys
from train_jax.devices import processes
port, index = sys.argv[1:]
processes._HEARTBEAT_SECONDS = 3
processes._FAILURE_SECONDS = 1
processes.join(f"localhost:{port}", 2, int(index))
processes.max_over_processes(0)
if index == "1":
    processes.limit_end(7)
    sys.exit(7)
processes.max_over_processes(0)
"""


@pytest.fixture(scope="module")
def programs():
    """The processes of both programs, which wait more than they compute."""
    started = {text: start_program(text) for text in (AT_THE_END, FAILS_ALONE)}
    yield started
    for process in itertools.chain(*started.values()):
        with process:  # waits for its end, and closes the pipe
            process.kill()


@pytest.mark.slow  # four processes
def test_process_0_may_take_longer_at_the_end(programs):
    """As for its plots: longer than a process without a heartbeat is waited for."""
    both = programs[AT_THE_END]
    printed = [process.communicate()[0] for process in both]
    assert [p.returncode for p in both] == [0, 0], printed


@pytest.mark.slow  # four processes
def test_a_process_that_fails_alone_does_not_wait_for_the_others(programs):
    """It goes, and the others learn of it: an orderly end may take ten minutes."""
    both = programs[FAILS_ALONE]
    printed = [process.communicate(timeout=120)[0] for process in both]
    assert both[1].returncode == 7, printed
    assert both[0].returncode != 0, printed


def wait_for_epochs(workdir, count, both):
    """Wait until a run has recorded a number of epochs."""
    end = time.monotonic() + 90
    metrics = workdir / wd.METRICS
    while not metrics.exists() or len(metrics.read_text().splitlines()) < count:
        assert time.monotonic() < end and all(p.poll() is None for p in both)
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("localhost", 2, 0),
            "--coordinator must be HOST:PORT or auto, got 'localhost'",
        ),
        ((":12", 2, 0), "--coordinator must be HOST:PORT or auto, got ':12'"),
        (("host:x", 2, 0), "--coordinator must be HOST:PORT or auto, got 'host:x'"),
        (("host:1", None, 0), "--coordinator host:1 needs --num_processes"),
        (("host:1", 2, None), "--coordinator host:1 needs --process_id"),
        (("host:1", 0, 0), "--num_processes must be at least 1, got 0"),
        (("host:1", 2, 2), "--process_id must be in [0, 1], got 2"),
        (("host:1", 2, -1), "--process_id must be in [0, 1], got -1"),
        ((None, 2, None), "--num_processes needs --coordinator=HOST:PORT, got 2"),
        ((None, None, 1), "--process_id needs --coordinator=HOST:PORT, got 1"),
        (("auto", 2, None), "--num_processes needs --coordinator=HOST:PORT, got 2"),
    ],
)
def test_wrong_flags_are_named(arguments, message):
    with pytest.raises(ValueError) as caught:
        processes.join(*arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "4"}, False),  # in the batch script, outside srun
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "node[1-2]"}, True),
        ({"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "node1"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_PROCESS_ADDRESSES": "a:8476,b:8476"}, True),
    ],
)
def test_a_cluster_is_recognised(monkeypatch, environment, expected):
    for name in ("SLURM_NTASKS", "SLURM_STEP_NODELIST", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    calls = []
    monkeypatch.setattr(processes, "_initialize", lambda *a: calls.append(a))
    processes.join(None, None, None)
    assert calls == ([()] if expected else [])


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        # One process on each of two nodes; four on each.
        ({"SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "2"}, True),
        ({"SLURM_NTASKS": "8", "SLURM_STEP_NUM_NODES": "2"}, False),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, True),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, False),
        # mpirun in a job of SLURM: its daemons are one task a node.
        (
            {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "2"}
            | {"OMPI_COMM_WORLD_LOCAL_SIZE": "4"},
            False,
        ),
        # Each process was given one GPU, or sees all of them.
        ({"CUDA_VISIBLE_DEVICES": "3"}, True),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, False),
        ({"CUDA_VISIBLE_DEVICES": "3", "JAX_LOCAL_DEVICE_IDS": "0"}, False),
    ],
)
def test_which_gpus_a_process_uses(monkeypatch, environment, expected):
    for name in ("SLURM_NTASKS", "SLURM_STEP_NUM_NODES", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    given = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **how: given.append(how))
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    processes.join("auto", None, None)
    # JAX leaves out of an empty list nothing; without a list it decides itself.
    assert given[0]["local_device_ids"] == ([] if expected else None)


def test_a_host_of_a_slice_is_told_to_join_the_others(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(ValueError, match=r"one of 4 hosts .* with --coordinator auto"):
        processes.join(None, None, None)


def test_an_error_without_a_text_is_raised_in_all_processes(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    broadcast = processes.multihost_utils
    monkeypatch.setattr(broadcast, "broadcast_one_to_all", lambda x: x)

    def fail():
        raise FileNotFoundError

    with pytest.raises(ValueError, match="FileNotFoundError"):
        processes.call_on_main(fail)


def test_a_cluster_that_jax_cannot_find_is_told_what_to_give(monkeypatch):
    def fail(**_):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    with pytest.raises(ValueError, match=r"\(coordinator_address .*\); give --coord"):
        processes.join("auto", None, None)


def test_a_port_that_is_taken_is_one_line(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("Failed to start RPC server\nMore of it.")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    message = "could not be joined: Failed to start RPC server$"
    with pytest.raises(ValueError, match=message):
        processes.join("localhost:7", 2, 0)


def test_auto_asks_the_cluster(monkeypatch):
    calls = []
    monkeypatch.setattr(processes, "_initialize", lambda *a: calls.append(a))
    processes.join("auto", None, None)
    assert calls == [()]


def test_out_of_memory_is_one_error_line(capsys, monkeypatch):
    message = "RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.\nMore of it."
    with pytest.raises(SystemExit) as caught, processes.ending_together("train.py"):
        raise jax.errors.JaxRuntimeError(message)
    assert caught.value.code == 1
    assert capsys.readouterr().err == (
        "train.py: error: RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.; a "
        "smaller config.batch_size, more accumulation_steps or a smaller model takes "
        "less memory\n"
    )
    with pytest.raises(SystemExit) as caught, processes.ending_together("train.py"):
        raise MemoryError("Unable to allocate 24.0 GiB")
    assert caught.value.code == 1
    assert capsys.readouterr().err == (
        "train.py: error: Unable to allocate 24.0 GiB; config.dataset.streaming=True "
        "reads images when they are needed\n"
    )
    with monkeypatch.context() as patch:  # of several processes each one may run out
        patch.setattr(jax, "process_count", lambda: 2)
        patch.setattr(os, "_exit", sys.exit)
        with pytest.raises(SystemExit), processes.ending_together("train.py"):
            raise jax.errors.JaxRuntimeError(message)
    assert "a smaller config.batch_size" in capsys.readouterr().err
    other = jax.errors.JaxRuntimeError("INTERNAL: a bug")
    with pytest.raises(jax.errors.JaxRuntimeError), processes.ending_together("x"):
        raise other
