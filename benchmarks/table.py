"""Write the tables of the documentation: python -m benchmarks.table."""

import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.run import RESULTS

_ROOT = pathlib.Path(__file__).parents[1]
_BEGIN, _END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
# The questions of each page, first what most users ask; None stands for all.
PAGES: dict[pathlib.Path, tuple[str, ...] | None] = {
    _ROOT / "docs" / "benchmarks.md": ("mnist", "train_step", "gpu"),
    _ROOT / "benchmarks" / "README.md": None,
}


def main() -> int:
    """Replace the tables of all pages."""
    for page, questions in PAGES.items():
        text = page.read_text(encoding="utf-8")
        page.write_text(fill(text, make_tables(RESULTS, questions)), encoding="utf-8")
    return 0


def fill(text: str, tables: str) -> str:
    """Put the tables between the marks."""
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n{tables}{_END}{after}"


def make_tables(folder: pathlib.Path, questions: Sequence[str] | None = None) -> str:
    """Make a Markdown table of each question, with all machines that answered it."""
    results: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        results.setdefault(result["question"], []).append(result)
    return "\n".join(
        _make_table(of_question)
        for question, of_question in results.items()
        if questions is None or question in questions
    )


def _make_table(results: Sequence[dict[str, Any]]) -> str:
    """Make the table of one question; the machines stand side by side."""
    machines = [_describe_machine(result) for result in results]
    letters = [f"{chr(ord('A') + i)}: " if machines[1:] else "" for i in range(26)]
    legend = " ".join(letters[i] + f"{machine}." for i, machine in enumerate(machines))
    columns = ["case", "program"]
    rows: dict[tuple[str, str], list[str]] = {}
    for letter, result in zip(letters, results, strict=False):
        names, cells_of = _make_columns(result, is_alone=len(results) == 1)
        for key in cells_of:
            rows.setdefault(key, [""] * (len(columns) - 2))
        columns += [letter + name for name in names]
        for key, row in rows.items():
            row += cells_of.get(key, [""] * len(names))
    lines = [
        f"**{results[0]['answer']}** {legend} "
        + ("Medians." if machines[1:] else "Median (quartiles)."),
        "",
        f"| {' | '.join(columns)} |",
        f"|---|---|{'--:|' * (len(columns) - 2)}",
    ]
    before = None
    for (case, program), cells in rows.items():
        lines.append(f"| {case if case != before else ''} | {program} | ")
        lines[-1] += f"{' | '.join(cells)} |"
        before = case
    return "\n".join(lines) + "\n"


def _describe_machine(result: dict[str, Any]) -> str:
    """Say on what a question was answered, and when."""
    versions = ", ".join(
        f"{name} {version}"
        for name, version in result["versions"].items()
        if name in ("jax", "torch")
    )
    return (
        f"{result['device']}, {result['processor']}, {result['cores']} cores; "
        f"{versions}; {result['date']}"
    )


def _make_columns(
    result: dict[str, Any], *, is_alone: bool
) -> tuple[list[str], dict[tuple[str, str], list[str]]]:
    """Name the columns of one machine; map (case, program) to its cells.

    Beside other machines there is room for the most important ones.
    """
    # Whole commands do not only pass images through; their memory tells more.
    are_commands = result["timings"][0].get("peak_bytes") is not None
    names = ["seconds", "times the first"]
    if is_alone:
        names.append("peak memory, GiB" if are_commands else "images/s")
    has_shares = result["timings"][0].get("peak_share") is not None
    if has_shares:
        names.append("share of the peak")
    firsts: dict[str, float] = {}
    cells_of: dict[tuple[str, str], list[str]] = {}
    for timing in result["timings"]:
        case, median = timing["case"], timing["median"]
        is_first = case not in firsts
        ratio = median / firsts.setdefault(case, median)
        low, high = timing["quartiles"]
        peaks, rate = timing.get("peak_bytes"), timing["images_per_second"]
        cells = [f"{median:.3g}" + (f" ({low:.3g}–{high:.3g})" if is_alone else "")]
        cells.append("" if is_first else f"{ratio:.2f} ×")
        if is_alone:
            cells.append(f"{max(peaks) / 2**30:.2f}" if peaks else f"{rate:,.0f}")
        if has_shares:
            share = timing.get("peak_share")
            cells.append("" if share is None else f"{share:.0%}")
        cells_of[case, timing["program"]] = cells
    return names, cells_of


if __name__ == "__main__":
    sys.exit(main())
