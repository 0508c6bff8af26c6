"""The examples and the notebook run, from top to bottom."""

import importlib.util
import pathlib

import pytest

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


# It compiles each line of the notebook, and trains a ViT for 25 epochs.
@pytest.mark.slow
def test_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    path = EXAMPLES / "vit_line_by_line.ipynb"
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    printed = "".join(
        output.get("text", "")
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    )
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
