"""Answer a question by measuring: python -m benchmarks.run train_step."""

import argparse
import contextlib
import datetime
import importlib
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import jax
import rich.box
import rich.console
import rich.table

from benchmarks.timing import Timing
from train_jax.cli.huge_pages import restart_with_huge_pages
from train_jax.output.summary import versions

QUESTIONS = (
    *("train_step", "inference", "scaling", "devices", "runs"),
    *("streaming", "compilation", "mnist", "gpu"),
)
_NUM_CPU_DEVICES = 8
RESULTS = pathlib.Path(__file__).parent / "results"


def main(arguments: Sequence[str]) -> int:
    """Parse the command line, measure, print a table and write the JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("question", choices=QUESTIONS)
    parser.add_argument(
        "--small", action="store_true", help="tiny models, to see that it works"
    )
    parser.add_argument("--rounds", type=int, default=10, help="turns that count")
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        help="folder for the JSON; by default benchmarks/results, or none with --small",
    )
    options = parser.parse_args(arguments)
    if options.rounds < 2:
        parser.error(f"--rounds must be at least 2, got {options.rounds}")
    question = importlib.import_module(f"benchmarks.{options.question}")
    timings = []
    for timing in question.measure(small=options.small, rounds=options.rounds):
        print(f"{timing.case}: {timing.program}: {timing.median:.4f} s", flush=True)
        timings.append(timing)
    print_table(timings)
    result = {
        "question": options.question,
        "answer": str(question.__doc__).splitlines()[0],
        "timings": [timing.to_json() for timing in timings],
        **describe_machine(),
    }
    folder = options.output or (None if options.small else RESULTS)
    if folder is None:
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    kind = jax.devices()[0].device_kind.lower().replace(" ", "_")
    path = folder / f"{options.question}_{kind}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(path)
    return 0


def print_table(timings: Sequence[Timing]) -> None:
    """Print the medians, and each program's ratio to the first one of its case."""
    table = rich.table.Table("case", "program", box=rich.box.SIMPLE)
    for heading in ("seconds", "images/s", "times the first", "GiB"):
        table.add_column(heading, justify="right")
    first: dict[str, Timing] = {}
    for timing in timings:
        ours = first.setdefault(timing.case, timing)
        table.add_row(
            timing.case if ours is timing else "",
            timing.program,
            f"{timing.median:.4f}",
            f"{timing.images_per_second:,.0f}",
            "" if ours is timing else f"{timing.median / ours.median:.2f} ×",
            "" if timing.peak_gib is None else f"{timing.peak_gib:.2f}",
        )
    rich.console.Console().print(table)


def describe_machine() -> dict[str, Any]:
    """Describe commit, date, device, processor and versions."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True
    )
    found = dict(versions())
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        found["torch"] = importlib.metadata.version("torch")
    return {
        "commit": commit.stdout.strip(),
        "date": datetime.date.today().isoformat(),
        "device": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "versions": found,
    }


def _processor() -> str:
    """Return the name of the processor."""
    path = pathlib.Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [x.partition(":")[2].strip() for x in lines if x.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    restart_with_huge_pages()  # for PyTorch as well
    if "devices" in sys.argv:
        # Has to be set before JAX starts.
        jax.config.update("jax_num_cpu_devices", _NUM_CPU_DEVICES)
    # A GPU is shared with PyTorch, and with the commands that are timed.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    sys.exit(main(sys.argv[1:]))
