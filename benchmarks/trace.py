"""Show where the time of a recorded trace went: python -m benchmarks.trace FOLDER.

The folder is that of a run trained with --config.profile_steps.
"""

import collections
import gzip
import json
import pathlib
import sys
from typing import Any


def main(arguments: list[str]) -> int:
    """Print the operations that took most of the time, of the newest trace."""
    files = sorted(pathlib.Path(arguments[0]).glob("**/perfetto_trace.json.gz"))
    if not files:
        print(f"{arguments[0]} holds no perfetto_trace.json.gz", file=sys.stderr)
        return 2
    with gzip.open(files[-1], "rt", encoding="utf-8") as file:
        rows = summarize(json.load(file)["traceEvents"])
    total = sum(seconds for _, _, seconds in rows)
    print(f"{'seconds':>9} {'share':>6} {'calls':>7}  operation")
    for name, calls, seconds in rows[:30]:
        print(f"{seconds:9.4f} {seconds / total:6.1%} {calls:7}  {name[:60]}")
    return 0


def summarize(events: list[dict[str, Any]]) -> list[tuple[str, int, float]]:
    """Sum up the operations that XLA ran; of nested ones, the time of each itself.

    Args:
        events: of a trace in Chrome's format, times in microseconds.

    Returns:
        Name, number of calls and seconds of each operation, the longest first.
    """
    operations = [e for e in events if "hlo_op" in e.get("args", {})]
    operations.sort(key=lambda e: (e["pid"], e["tid"], e["ts"], -e["dur"]))
    calls: collections.Counter[str] = collections.Counter()
    seconds: collections.defaultdict[str, float] = collections.defaultdict(float)
    open_events: list[dict[str, Any]] = []
    for event in operations:
        while open_events and not _is_inside(event, open_events[-1]):
            open_events.pop()
        if open_events:
            seconds[open_events[-1]["name"]] -= event["dur"] / 1e6
        calls[event["name"]] += 1
        seconds[event["name"]] += event["dur"] / 1e6
        open_events.append(event)
    rows = [(name, calls[name], seconds[name]) for name in calls]
    return sorted(rows, key=lambda row: -row[2])


def _is_inside(event: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether an event lies within another one on the same thread."""
    same = (event["pid"], event["tid"]) == (other["pid"], other["tid"])
    return same and event["ts"] < other["ts"] + other["dur"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
