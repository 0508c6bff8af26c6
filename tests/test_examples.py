"""The examples and the notebook run, from top to bottom."""

import importlib.util
import pathlib
import re

import pytest

from tests import make_notebook

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"


def _import(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_attention_example_prints_and_draws(tmp_path, capsys):
    example = _import(EXAMPLES / "scaled_dot_product_attention.py")
    assert example.main(["--output", str(tmp_path / "out")]) == 0
    output = capsys.readouterr().out
    assert "sums of its rows [[1. 1. 1.]]" in output
    assert "output (16, 256, 512), attention map (16, 256, 256)" in output
    pictures = {path.name: path for path in (tmp_path / "out").iterdir()}
    assert set(pictures) == {
        "three_tokens.png",
        "sixteen_images.png",
        "patches_of_a_digit.png",
    }
    assert all(path.stat().st_size > 5_000 for path in pictures.values())


def _execute(name, folder, monkeypatch):
    """Run a notebook in a folder; return it, and what it printed."""
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=300, resources=resources).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    return notebook, "".join(output.get("text", "") for output in outputs)


def test_the_notebook_of_the_modules_is_the_page():
    import nbformat

    page = make_notebook.PAGE.read_text(encoding="utf-8")
    notebook = nbformat.read(make_notebook.NOTEBOOK, as_version=4)
    assert notebook == make_notebook.make_notebook(page), (
        "run python -m tests.make_notebook"
    )


# It trains four models at once, and exports one.
@pytest.mark.slow
def test_the_notebook_of_the_modules_does_what_it_says(tmp_path, monkeypatch):
    pytest.importorskip("flatbuffers")
    _, printed = _execute("use_the_modules", tmp_path, monkeypatch)
    for name in ("linear probe", "head alone"):
        (share,) = re.findall(rf"{name}: ([\d.]+)% of new digits", printed)
        assert float(share) > 80
    (share,) = re.findall(r"'accuracy': ([\d.]+)", printed)
    assert float(share) > 0.8
    assert "the first block is unchanged: True" in printed
    (difference,) = re.findall(r"largest difference: (\S+)", printed)
    assert float(difference) < 1e-5
    (change,) = re.findall(r"before the change differ by (\S+)", printed)
    assert float(change) == 0
    assert "logits of an NNX module: (1, 5)" in printed
    assert "16 products, the first of (17, 32) (32, 32)" in printed


# It compiles each line of the notebook, and trains a ViT for 25 epochs.
@pytest.mark.slow
def test_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    notebook, printed = _execute("vit_line_by_line", tmp_path, monkeypatch)
    (accuracy,) = [line for line in printed.splitlines() if "test accuracy" in line]
    assert float(accuracy.rpartition(" ")[2].rstrip("%")) > 90
    pictures = [
        output
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 4
