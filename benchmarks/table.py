"""Write the README's tables from the results: python -m benchmarks.table."""

import json
import pathlib
import sys
from typing import Any

from benchmarks.run import RESULTS

_README = pathlib.Path(__file__).parents[1] / "README.md"
_BEGIN, _END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"


def main() -> int:
    """Fill the README's tables anew."""
    _README.write_text(fill(_README.read_text(), make_tables(RESULTS)))
    return 0


def fill(text: str, tables: str) -> str:
    """Put the tables between the marks."""
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n{tables}{_END}{after}"


def make_tables(folder: pathlib.Path) -> str:
    """Make a Markdown table of each result file."""
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return "\n".join(_make_table(result) for result in results)


def _make_table(result: dict[str, Any]) -> str:
    """Make the table of one question on one machine."""
    versions = ", ".join(
        f"{name} {version}"
        for name, version in result["versions"].items()
        if name in ("jax", "torch")
    )
    has_peaks = any(timing["peak_bytes"] for timing in result["timings"])
    lines = [
        f"**{result['answer']}** {result['device']}, {result['processor']}, "
        f"{result['cores']} cores; {versions}; {result['date']}. Median (quartiles).",
        "",
        f"| case | program | seconds | images/s | faster |{' GiB |' * has_peaks}",
        f"|---|---|--:|--:|--:|{'--:|' * has_peaks}",
    ]
    ours: dict[str, float] = {}
    for timing in result["timings"]:
        case, median = timing["case"], timing["median"]
        is_first = case not in ours
        ours.setdefault(case, median)
        low, high = timing["quartiles"]
        lines.append(
            f"| {case if is_first else ''} | {timing['program']} | "
            f"{median:.3g} ({low:.3g}–{high:.3g}) | "
            f"{timing['images_per_second']:,.0f} | "
            f"{'' if is_first else f'{median / ours[case]:.2f} ×'} |"
            + (f" {max(timing['peak_bytes']) / 2**30:.2f} |" if has_peaks else "")
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
