"""Start with missing or damaged files in the workdir: train on, or one error line."""

import json
import shutil

import jax
import pytest

import train
from tests.train.command import train_arguments
from tests.train.tiny import compile_once  # noqa: F401 (a fixture)
from train_jax.output import workdir as wd
from train_jax.run import experiment

KINDS = ("missing", "empty", "truncated", "garbage", "other")

GOES_ON = ""
IN_THE_WAY = "train.py: error: '{path}' is in the way: it must be a {right}"
NO_JSON = "train.py: error: {path} is not valid JSON: "
DAMAGED = "train.py: error: all checkpoints in "

# Name → the start of the last line on stderr, for each of the kinds; None for those
# that a folder cannot have.
OUTCOMES = {
    wd.CONFIG: (
        "train.py: error: --workdir '{workdir}' holds files but no run",
        *(3 * [NO_JSON]),
        IN_THE_WAY,
    ),
    wd.METRICS: (*(4 * [GOES_ON]), IN_THE_WAY),
    wd.SUMMARY: (GOES_ON, *(3 * [NO_JSON]), "train.py: error: {path} cannot be read: "),
    wd.CHECKPOINTS: (GOES_ON, GOES_ON, None, None, IN_THE_WAY),
    wd.TENSORBOARD: (GOES_ON, GOES_ON, None, None, IN_THE_WAY),
    wd.PLOTS: (GOES_ON, GOES_ON, None, None, IN_THE_WAY),
    f"{wd.CHECKPOINTS}/2": (GOES_ON, DAMAGED, None, None, DAMAGED),
    f"{wd.CHECKPOINTS}/2/metadata": (DAMAGED, DAMAGED, None, None, DAMAGED),
    f"{wd.CHECKPOINTS}/2/state": (DAMAGED, DAMAGED, None, None, DAMAGED),
    f"{wd.CHECKPOINTS}/2/checksums.json": 5 * (DAMAGED,),
}
CASES = [
    (name, kind, outcome)
    for name, outcomes in OUTCOMES.items()
    for kind, outcome in zip(KINDS, outcomes, strict=True)
    if outcome is not None
]
IDS = [f"{name} {kind}" for name, kind, _ in CASES]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a finished run of two steps, and its summary.

    Neither this run nor those of the tests draw plots, which takes half a second, or
    print the table of layers.
    """
    workdir = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            experiment, "_plot", lambda folder, *_: folder.mkdir(exist_ok=True)
        )
        patch.setattr(experiment, "print_layers", lambda *_: None)
        assert train.main(_arguments(workdir)) == 0
        yield workdir, read_json(workdir / wd.SUMMARY)


def read_json(path):
    return json.loads(path.read_text())


def _arguments(workdir):
    return train_arguments(workdir, batch_size=8 * jax.device_count())


def damage(path, kind):
    is_folder = path.is_dir()
    content = b"" if is_folder else path.read_bytes()
    if is_folder:
        shutil.rmtree(path)
    else:
        path.unlink()
    if kind == "missing":
        return
    if is_folder == (kind != "other"):
        path.mkdir()
        return
    damaged = {"truncated": content[:-20], "garbage": b"\xff\xfe{"}
    path.write_bytes(damaged.get(kind, b""))


def results(summary):
    timing = ("train_seconds", "images_per_second")
    return {k: v for k, v in summary.items() if k not in timing}


@pytest.mark.parametrize(("name", "kind", "outcome"), CASES, ids=IDS)
def test_a_damaged_folder(whole, tmp_path, capsys, name, kind, outcome):
    original, summary = whole
    workdir = tmp_path / "run"
    shutil.copytree(original, workdir)
    if name != wd.SUMMARY:
        (workdir / wd.SUMMARY).unlink()
    damage(workdir / name, kind)
    code = train.main(_arguments(workdir))
    *warnings, line = capsys.readouterr().err.splitlines() or [""]
    right = "folder" if (original / name).is_dir() else "file"
    assert line.startswith(
        outcome.format(path=workdir / name, workdir=workdir, right=right)
    )
    assert all(warning.startswith("warning: checkpoint ") for warning in warnings)
    if outcome is GOES_ON:
        assert (code, line) == (0, "")
        again = read_json(workdir / wd.SUMMARY)
        assert results(again) == results(summary)
        metrics = (workdir / wd.METRICS).read_text()
        assert metrics.count("\n") == 1 and '"step": 2' in metrics
    elif outcome is DAMAGED:
        assert code == 1
        assert line.endswith("are damaged; --overwrite starts anew")
        assert [path.name for path in (workdir / wd.CHECKPOINTS).iterdir()] == ["2"]
    else:
        assert code in (1, 2)


def test_a_summary_without_results_is_rewritten(whole, tmp_path, capsys):
    original, summary = whole
    workdir = tmp_path / "run"
    shutil.copytree(original, workdir)
    (workdir / wd.SUMMARY).write_text("{}")
    assert train.main(_arguments(workdir)) == 0
    assert results(read_json(workdir / wd.SUMMARY)) == results(summary)


def test_config_and_checkpoints_are_enough(whole, tmp_path, capsys):
    original, summary = whole
    workdir = tmp_path / "run"
    workdir.mkdir()
    shutil.copy(original / wd.CONFIG, workdir)
    shutil.copytree(original / wd.CHECKPOINTS, workdir / wd.CHECKPOINTS)
    assert train.main(_arguments(workdir)) == 0
    assert read_json(workdir / wd.SUMMARY) == summary
    metrics = (workdir / wd.METRICS).read_bytes()
    assert metrics == (original / wd.METRICS).read_bytes()


@pytest.mark.parametrize("has_checksums", [True, False])
def test_checkpoints_of_version_0_1(whole, tmp_path, capsys, has_checksums):
    original, _ = whole
    workdir = shutil.copytree(original, tmp_path / "run")
    (workdir / wd.SUMMARY).unlink()
    folder = workdir / wd.CHECKPOINTS / "2"
    (folder / "metadata").rename(folder / ("about" if has_checksums else "default"))
    if not has_checksums:
        (folder / "checksums.json").unlink()
    assert train.main(_arguments(workdir)) in (1, 2)
    (line,) = capsys.readouterr().err.splitlines()
    error = f"checkpoint {folder} was written by version 0.1; --overwrite starts anew"
    assert line.startswith(f"train.py: error: {error}")
    assert folder.is_dir()
    assert train.main([*_arguments(workdir), "--overwrite"]) == 0
