"""Each benchmark runs on tiny models; the documentation shows what was measured."""

import json
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


# In a process of its own: beside TensorFlow, which other tests import, torch's compiled
# programs may crash.
SCRIPT = """
import sys
from benchmarks import cases, run, timing

timing._REST_SECONDS = 0.0
question = sys.argv[1]
if question != "train_step":  # which shows that a ResNet is measured as well
    cases.SMALL = {"ViT, tiny": cases.SMALL["ViT, tiny"]}
sys.exit(run.main(sys.argv[1:]))
"""


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


# Each compiles one to four training steps, or starts up to four commands.
@pytest.mark.slow
@pytest.mark.parametrize("question", run.QUESTIONS)
def test_every_benchmark_prints_a_table_and_writes_json(tmp_path, question):
    if question not in ("runs", "devices"):
        pytest.importorskip("torch")
    arguments = [question, "--small", "--rounds", "2", "--output", str(tmp_path)]
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    (path,) = tmp_path.glob("*.json")
    result = json.loads(path.read_text())
    assert result["question"] == question
    assert {"commit", "date", "device", "versions"} < set(result)
    assert len(result["timings"]) >= 2
    assert all(min(t["seconds"]) > 0 for t in result["timings"])
    printed = process.stdout
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
