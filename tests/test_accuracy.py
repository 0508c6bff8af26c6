"""The page of the CIFAR-10 recipes shows what was recorded."""

import json

import pytest

from benchmarks import accuracy

MACHINE = {"cores": 2, "processor": "AMD EPYC", "commit": "abc", "date": "2026-11-29"}


@pytest.fixture
def make_run(tmp_path):
    """Make what a run leaves, as far as it is recorded."""

    def make(name, **changes):
        summary = {
            "model": "airbench",
            "num_params": 1_971_640,
            "device": "1 × cpu",
            "config": {"dtype": "bfloat16", "num_epochs": 10, "num_steps": 400},
            "versions": {},
            "test_accuracy": 0.93,
            "train_seconds": 100.0,
        }
        workdir = tmp_path / name
        workdir.mkdir()
        (workdir / "summary.json").write_text(json.dumps(summary | changes))
        metrics = [json.dumps({"epoch": epoch}) for epoch in (7, 8)]
        (workdir / "metrics.jsonl").write_text("\n".join(metrics) + "\n")
        return workdir

    return make


def test_the_page_shows_what_was_recorded():
    results = json.loads(accuracy.RESULTS.read_text())
    assert accuracy.make_table(results["measured"]) in accuracy.PAGE.read_text()
    assert all(x["source"] for x in results["published"])


def test_runs_are_summarised(make_run):
    runs = [
        make_run("0", test_accuracy_augmented=0.94, train_seconds=1000.0),
        make_run(
            "1", test_accuracy=0.95, test_accuracy_augmented=0.95, train_seconds=1100.0
        ),
    ]
    record = accuracy.summarise("fast", runs, MACHINE)
    assert record["accuracy"] == {"mean": 94.0, "deviation": 1.41}
    assert accuracy.make_table([record]).splitlines()[2] == (
        "| `fast`, bfloat16 | 1,971,640 | 8 | 94.00 ± 1.41 % | 94.50 ± 0.71 % | 2 | "
        "18 min | 2 cores, AMD EPYC |"
    )
    one = accuracy.summarise("one", [make_run("2", device="1 × H200")], MACHINE)
    assert accuracy.make_table([record, one]).splitlines()[2] == (
        "| `one`, bfloat16 | 1,971,640 | 8 | 93.00 % |  | 1 | 100 s | 1 × H200 |"
    )


def test_runs_replace_those_of_the_same_config(tmp_path, monkeypatch, make_run):
    for name in ("RESULTS", "PAGE", "_PICTURE"):
        monkeypatch.setattr(accuracy, name, tmp_path / f"{name}.png")
    old = accuracy.summarise("fast", [make_run("old", test_accuracy=0.5)], MACHINE)
    old["label_y"] = -9
    accuracy.RESULTS.write_text(json.dumps({"published": [], "measured": [old]}))
    accuracy.PAGE.write_text("<!-- benchmarks: begin -->\n<!-- benchmarks: end -->\n")
    monkeypatch.setattr(accuracy, "describe_machine", lambda: MACHINE)
    assert accuracy.main(["--config", "fast", str(make_run("new"))]) == 0
    (record,) = json.loads(accuracy.RESULTS.read_text())["measured"]
    assert record["label_y"] == -9
    assert record["accuracy"] == {"mean": 93.0}
    assert "93.00 %" in accuracy.PAGE.read_text()
    assert accuracy._PICTURE.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match="2"):
        accuracy.main(["--config", "fast"])
