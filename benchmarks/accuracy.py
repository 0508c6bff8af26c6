"""Accuracy on CIFAR-10 against training time: python -m benchmarks.accuracy.

Draws the picture and the table of docs/cifar.md from cifar10.json. Before, finished
runs of one config, on this machine, can be recorded there:

    python -m benchmarks.accuracy --config fast_cifar10 runs/seed_0 runs/seed_1
"""

import argparse
import json
import pathlib
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.run import describe_machine
from benchmarks.table import fill
from train_jax.output.files import read_json
from train_jax.output.tiles import make_figure

_ROOT = pathlib.Path(__file__).parents[1]
RESULTS = _ROOT / "benchmarks" / "cifar10.json"
PAGE = _ROOT / "docs" / "cifar.md"
_PICTURE = _ROOT / "docs" / "images" / "cifar10.png"

# Axes of the picture: seconds, per cent.
_SHORTEST, _LONGEST = 1.0, 2e5
_LOWEST, _HIGHEST = 85.0, 97.0
_COLORS = {"cpu": "tab:blue", "gpu": "tab:red"}


def main(arguments: Sequence[str]) -> int:
    """Record runs, if there are any; draw the picture, and write the table."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.accuracy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", help="how the config is called in the table")
    parser.add_argument("workdirs", nargs="*", type=pathlib.Path, help="finished runs")
    options = parser.parse_args(arguments)
    if bool(options.workdirs) != bool(options.config):
        parser.error("--config and workdirs need each other")
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    if options.workdirs:
        record = summarise(options.config, options.workdirs, describe_machine())
        others = []
        for x in results["measured"]:
            if not _is_of_same(x, record):
                others.append(x)
            elif "label_y" in x:
                record["label_y"] = x["label_y"]
        results["measured"] = [*others, record]
        text = json.dumps(results, indent=2, ensure_ascii=False)
        RESULTS.write_text(text + "\n", encoding="utf-8")
    draw(results, _PICTURE)
    page = fill(PAGE.read_text(encoding="utf-8"), make_table(results["measured"]))
    PAGE.write_text(page, encoding="utf-8")
    return 0


def _is_of_same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return all(a[name] == b[name] for name in ("config", "dtype", "device"))


def summarise(
    config: str, workdirs: Sequence[pathlib.Path], machine: dict[str, Any]
) -> dict[str, Any]:
    """Describe runs of one config: accuracies in per cent, mean seconds of training."""
    summaries = [read_json(workdir / "summary.json") for workdir in workdirs]
    first = summaries[0]
    *_, last_epoch = (workdirs[0] / "metrics.jsonl").read_text().splitlines()
    is_cpu = "cpu" in first["device"]
    return {
        "config": config,
        "model": first["model"],
        "num_params": first["num_params"],
        "kind": "cpu" if is_cpu else "gpu",
        "device": f"{machine['cores']} cores, {machine['processor']}"
        if is_cpu
        else first["device"],
        "dtype": first["config"]["dtype"],
        "epochs": json.loads(last_epoch)["epoch"],
        "runs": len(summaries),
        "accuracy": _describe([x["test_accuracy"] for x in summaries]),
        "augmented": _describe(
            [
                x["test_accuracy_augmented"]
                for x in summaries
                if "test_accuracy_augmented" in x
            ]
        ),
        "seconds": round(statistics.mean(x["train_seconds"] for x in summaries), 2),
        "commit": machine["commit"],
        "date": machine["date"],
        "versions": first["versions"],
    }


def make_table(measured: Sequence[dict[str, Any]]) -> str:
    """Make a Markdown table of this project's results, the fastest first."""
    lines = [
        "| config | parameters | epochs | test accuracy | with test-time augmentation "
        "| runs | training | on |",
        "|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    for x in sorted(measured, key=lambda x: x["seconds"]):
        cells = [
            f"`{x['config']}`, {x['dtype']}",
            f"{x['num_params']:,}",
            str(x["epochs"]),
            _percent(x["accuracy"]),
            _percent(x["augmented"]),
            str(x["runs"]),
            _duration(x["seconds"]),
            x["device"],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _describe(shares: Sequence[float]) -> dict[str, float]:
    """Compute the mean, and of several the standard deviation, in per cent."""
    result = {}
    if shares:
        result["mean"] = round(100 * statistics.mean(shares), 2)
    if len(shares) > 1:
        result["deviation"] = round(100 * statistics.stdev(shares), 2)
    return result


def _percent(described: dict[str, float]) -> str:
    numbers = [f"{value:.2f}" for value in described.values()]
    return f"{' ± '.join(numbers)} %" if numbers else ""


def _duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.2f} s"
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"


def draw(results: dict[str, Any], path: pathlib.Path) -> None:
    """Draw accuracy against time; published results are hollow and grey.

    Published results without a time stand at the right edge.
    """
    figure = make_figure(9, 6)
    axis = figure.subplots()
    for x in results["measured"]:
        y = (x["augmented"] or x["accuracy"])["mean"]
        axis.plot(x["seconds"], y, "o", color=_COLORS[x["kind"]])
        name = f"{x['config']}, {x['dtype']}"
        _annotate(axis, name, x["seconds"], y, x.get("label_y", 6))
    for x in results["published"]:
        seconds = x.get("seconds", _LONGEST)
        style = {"color": "grey", "markerfacecolor": "none"}
        axis.plot(seconds, x["accuracy"], "s" if "seconds" in x else "<", **style)
        label_y = x.get("label_y", 2)
        _annotate(axis, x["name"], seconds, x["accuracy"], label_y, color="grey")
    axis.set(xscale="log", xlim=(_SHORTEST, 1.2 * _LONGEST), ylim=(_LOWEST, _HIGHEST))
    axis.set(xlabel="training (seconds)", ylabel="test accuracy (%)")
    axis.grid(alpha=0.3)
    for kind, color in _COLORS.items():
        axis.plot([], [], "o", color=color, label=f"this project, {kind.upper()}")
    style = {"color": "grey", "markerfacecolor": "none"}
    axis.plot([], [], "s", label="published, GPU", **style)
    axis.plot([], [], "<", label="published without a time", **style)
    axis.legend(loc="lower left", fontsize=8)
    figure.savefig(path, dpi=120)


def _annotate(
    axis: Any, text: str, x: float, y: float, label_y: float, color: str = "black"
) -> None:
    """Write a label beside a point, so many typographic points above it."""
    side = "right" if x > _LONGEST / 30 else "left"
    offset = (-6 if side == "right" else 6, label_y)
    how = {"textcoords": "offset points", "ha": side, "fontsize": 7, "color": color}
    axis.annotate(text, (x, y), offset, **how)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
