"""Turn docs/modules.md into a notebook: python -m tests.make_notebook."""

import pathlib
import re

import nbformat

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "modules.md"
NOTEBOOK = ROOT / "examples" / "use_the_modules.ipynb"


def make_notebook(page: str) -> nbformat.NotebookNode:
    """Make a notebook of a page: its Python blocks become cells of code."""
    parts = re.split(r"^```python\n(.*?)^```\n", page, flags=re.DOTALL | re.MULTILINE)
    cells = []
    for index, part in enumerate(parts):
        if text := part.strip():
            make = (
                nbformat.v4.new_code_cell
                if index % 2
                else nbformat.v4.new_markdown_cell
            )
            cells.append(make(text, id=f"cell-{index}"))
    return nbformat.v4.new_notebook(cells=cells)


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    nbformat.write(make_notebook(page), NOTEBOOK)
