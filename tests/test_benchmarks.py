"""The benchmarks run, in a small form, and the README's numbers are theirs."""

import json

import pytest

from benchmarks import run, table, timing
from benchmarks.timing import Timing, take_turns


def test_programs_take_turns_each_twice(monkeypatch):
    monkeypatch.setattr(timing, "_REST_SECONDS", 0.0)
    calls = []
    programs = {name: lambda name=name: calls.append(name) for name in "ab"}
    timings = take_turns("c", programs, rounds=4, images=8, units=2)
    assert "".join(calls) == "aabb" * 4
    assert [t.program for t in timings] == ["a", "b"]
    assert all(len(t.seconds) == 4 for t in timings)


def test_a_timing_tells_its_median_and_quartiles():
    described = Timing("case", "program", [4.0, 1.0, 2.0, 3.0, 10.0], 6).to_json()
    assert described["median"] == 3.0
    assert described["quartiles"] == [2.0, 4.0]
    assert described["images_per_second"] == 2.0


@pytest.mark.slow
@pytest.mark.parametrize("question", run.QUESTIONS)
def test_every_question_is_answered_in_its_small_form(tmp_path, capsys, question):
    if question not in ("runs", "devices"):
        pytest.importorskip("torch")
    arguments = [question, "--small", "--rounds", "2", "--output", str(tmp_path)]
    assert run.main(arguments) == 0
    (path,) = tmp_path.glob("*.json")
    result = json.loads(path.read_text())
    assert result["question"] == question
    assert {"commit", "date", "device", "versions"} < set(result)
    assert len(result["timings"]) >= 4
    assert all(min(t["seconds"]) > 0 for t in result["timings"])
    printed = capsys.readouterr().out
    assert all(t["program"].split()[0] in printed for t in result["timings"])
    assert "seconds" in printed


@pytest.mark.parametrize("page", table.PAGES, ids=lambda page: page.parent.name)
def test_the_readmes_say_what_was_measured(page):
    text, questions = page.read_text(), table.PAGES[page]
    assert table.fill(text, table.make_tables(run.RESULTS, questions)) == text
