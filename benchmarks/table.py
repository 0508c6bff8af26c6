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
    """Make a Markdown table of each result file, or of those of some questions."""
    results = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(folder.glob("*.json"))
    ]
    return "\n".join(
        _make_table(result)
        for result in results
        if questions is None or result["question"] in questions
    )


def _make_table(result: dict[str, Any]) -> str:
    """Make the table of one question on one machine."""
    versions = ", ".join(
        f"{name} {version}"
        for name, version in result["versions"].items()
        if name in ("jax", "torch")
    )
    # Whole commands do not only pass images through; their memory tells more.
    are_commands = result["timings"][0].get("peak_bytes") is not None
    last = "peak memory, GiB" if are_commands else "images/s"
    has_shares = result["timings"][0].get("peak_share") is not None
    shares, rule = (" share of the peak |", "--:|") if has_shares else ("", "")
    lines = [
        f"**{result['answer']}** {result['device']}, {result['processor']}, "
        f"{result['cores']} cores; {versions}; {result['date']}. Median (quartiles).",
        "",
        f"| case | program | seconds | times the first | {last} |{shares}",
        f"|---|---|--:|--:|--:|{rule}",
    ]
    firsts: dict[str, float] = {}
    for timing in result["timings"]:
        case, median = timing["case"], timing["median"]
        is_first = case not in firsts
        ratio = median / firsts.setdefault(case, median)
        low, high = timing["quartiles"]
        peaks, rate = timing.get("peak_bytes"), timing["images_per_second"]
        lines.append(
            f"| {case if is_first else ''} | {timing['program']} | "
            f"{median:.3g} ({low:.3g}–{high:.3g}) | "
            f"{'' if is_first else f'{ratio:.2f} ×'} | "
            + (f"{max(peaks) / 2**30:.2f}" if peaks else f"{rate:,.0f}")
            + " |"
            + (f" {timing['peak_share']:.0%} |" if timing.get("peak_share") else "")
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
