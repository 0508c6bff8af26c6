"""Each benchmark runs on tiny models; the documentation shows what was measured."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import types

import pytest

from benchmarks import cases, plans, run, table, timing
from benchmarks.timing import Timing, take_turns


@pytest.fixture
def no_rest(monkeypatch):
    """Let programs follow on each other at once."""
    monkeypatch.setattr(timing, "_REST_SECONDS", 0.0)


WITHOUT_TORCH = ("devices", "runs")

# Begins the line that ends what was printed for a question.
MARKER = "answered:"

# All questions in one process, as each of them needs JAX, torch and the trainer, which
# take seconds to import. Not in this one: beside TensorFlow, which other tests import,
# torch's compiled programs may crash.
SCRIPT = """
import functools, sys, traceback
from unittest import mock
from benchmarks import cases, run, timing
from train_jax.config import models
from train_jax.devices import compiler

def hasten(question):
    # Leave out what a measurement needs, but not a try.
    if question == "streaming":
        mock.patch("benchmarks.streaming._NUM_BATCHES", 2).start()
    if question == "train_step":
        mock.patch("benchmarks.train_step._SIDE", 64).start()
        # Two blocks in place of eight, on both sides.
        from benchmarks import peers
        ours, peer = models.MODELS["resnet18"], peers.ResNet
        blocks = {"stage_sizes": (1, 1)}
        models.MODELS["resnet18"] = functools.partial(ours, **blocks)
        peers.ResNet = lambda **fields: peer(**fields | blocks)

timing._REST_SECONDS = 0.0
compiler._LLVM_LEVEL = 0
small = cases.SMALL
marker, folder, *questions = sys.argv[1:]
for question in questions:
    cases.SMALL = {"ViT, tiny": small["ViT, tiny"]}
    if question == "train_step":  # which shows that a ResNet is measured as well
        cases.SMALL = small
    flags = ["--small", "--rounds", "2", "--output", f"{folder}/{question}"]
    try:
        hasten(question)
        code = run.main([question, *flags])
    except (Exception, SystemExit):
        traceback.print_exc()
        code = 1
    for stream in (sys.stdout, sys.stderr):
        print(file=stream)
        print(marker, question, code, file=stream, flush=True)
"""


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    """The process that has answered all questions, and its folder of JSON files."""
    folder = tmp_path_factory.mktemp("answered")
    has_torch = importlib.util.find_spec("torch") is not None
    questions = run.QUESTIONS if has_torch else WITHOUT_TORCH
    # Of a flag that is there twice, the last one counts. No question needs more devices
    # than two, and each of them costs time.
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    # Several questions compile the same programs.
    variables = {
        "XLA_FLAGS": flags,
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, MARKER, str(folder), *questions],
        env=os.environ | variables,
        capture_output=True,
        text=True,
    )
    return process, folder


def parts(text):
    """What was printed for each question that came to an end, and its exit code."""
    *found, _ = re.split(rf"^{MARKER} (\w+) (\d+)\n", text, flags=re.MULTILINE)
    printed, questions, codes = found[::3], found[1::3], map(int, found[2::3])
    return dict(zip(questions, zip(printed, codes, strict=True), strict=True))


def test_each_program_runs_twice_in_its_turn(no_rest):
    calls = []
    programs = {name: lambda name=name: calls.append(name) for name in "ab"}
    timings = take_turns("c", programs, rounds=4, images=8, units=2)
    assert "".join(calls) == "aabb" * 4
    assert [t.program for t in timings] == ["a", "b"]
    assert all(len(t.seconds) == 4 for t in timings)


def test_median_and_quartiles():
    described = Timing("case", "program", [4.0, 1.0, 2.0, 3.0, 10.0], 6).to_json()
    assert described["median"] == 3.0
    assert described["quartiles"] == [2.0, 4.0]
    assert described["images_per_second"] == 2.0


def test_a_small_benchmark_overwrites_no_result(tmp_path, monkeypatch, capsys):
    question = types.SimpleNamespace(__doc__="?", measure=lambda **_: [])
    monkeypatch.setattr(run.importlib, "import_module", lambda name: question)
    monkeypatch.setattr(run, "RESULTS", tmp_path)
    assert run.main(["devices", "--small"]) == 0
    assert not list(tmp_path.iterdir())
    assert run.main(["devices"]) == 0
    assert len(list(tmp_path.iterdir())) == 1


# For each, one to four training steps are compiled, or up to four commands started.
@pytest.mark.slow
@pytest.mark.parametrize("question", run.QUESTIONS)
def test_every_benchmark_prints_a_table_and_writes_json(answered, question):
    if question not in WITHOUT_TORCH:
        pytest.importorskip("torch")
    process, folder = answered
    assert process.returncode == 0, process.stderr  # it has not crashed
    error, code = parts(process.stderr)[question]
    assert code == 0, error
    printed, _ = parts(process.stdout)[question]
    (path,) = (folder / question).glob("*.json")
    result = json.loads(path.read_text())
    assert result["question"] == question
    assert {"commit", "date", "device", "versions"} < set(result)
    assert len(result["timings"]) >= 2
    assert all(min(t["seconds"]) > 0 for t in result["timings"])
    assert all(t["program"].split()[0] in printed for t in result["timings"])
    assert "seconds" in printed


def test_operations_of_a_step_grow_with_the_batch():
    pytest.importorskip("torch")
    from benchmarks import gpu

    case = cases.SMALL["ViT, tiny"]
    fused = case.fields | {"model.attention_implementation": "cudnn"}
    flops = gpu.flops_of_step(case)
    # At least the MLP of 64 hidden units, on the class token: two layers, forward and
    # backward.
    assert flops > 3 * 2 * case.batch_size * 2 * 16 * 64
    assert gpu.flops_of_step(case._replace(batch_size=16)) == pytest.approx(2 * flops)
    assert gpu.flops_of_step(case._replace(fields=fused)) == flops


def test_the_tables_of_plans_are_those_of_the_results():
    text = plans.PAGE.read_text(encoding="utf-8")
    results = json.loads(plans.RESULTS.read_text(encoding="utf-8"))
    assert table.fill(text, plans.make_tables(results)) == text


@pytest.mark.parametrize("page", table.PAGES, ids=lambda page: page.parent.name)
def test_the_tables_of_the_documentation_are_those_of_the_results(page):
    text, questions = page.read_text(), table.PAGES[page]
    assert table.fill(text, table.make_tables(run.RESULTS, questions)) == text
