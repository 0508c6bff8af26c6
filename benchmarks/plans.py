"""Plan every config for TPU slices: python -m benchmarks.plans.

It needs the extra [plan], compiles for half an hour, and writes the tables of
docs/plan.md. What is among the results already is not compiled again.
"""

import importlib.metadata
import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from benchmarks.table import fill

_ROOT = pathlib.Path(__file__).parents[1]
RESULTS = _ROOT / "benchmarks" / "plans.json"
PAGE = _ROOT / "docs" / "plan.md"
_CONFIGS = (
    *("vit_digits", "vit_mnist", "vit_mnist_reference", "vit_mnist_best:256"),
    *("resnet18_mnist", "resnet18_cifar10", "resnet20_cifar10", "fast_cifar10:2000"),
    *("vit_cifar10", "vit_conv_cifar10:256", "vit_patches_cifar10:256"),
    *("finetune_vit_cifar10", "vit_s16_imagenet"),
    "transformer_reverse",
    "ablation_vit_mnist",
)
_SMALL_SLICES = ("v5e:2x2", "v5e:4x4")
# On few images of 224 pixels, which are in each device's memory; in bfloat16.
_LARGE = (
    "init_from=None",
    "dataset.train_split=train[:1024]",
    "dataset.streaming=False",
)
_VARIANTS = {
    "fsdp, scan, remat": ("fsdp=True", "model.scan=True", "model.remat=True"),
    "scan, remat": ("model.scan=True", "model.remat=True"),
    "fsdp, scan": ("fsdp=True", "model.scan=True"),
    "scan": ("model.scan=True",),
    "": (),
}
_SCANNED = tuple(_VARIANTS)[:4]
_LARGE_SLICES = {
    "v5e:2x2": tuple(_VARIANTS),
    "v5e:4x4": _SCANNED,
    "v5e:8x8": _SCANNED,
    "v5e:16x16": _SCANNED[:1],
}


def main() -> int:
    """Make the missing plans, and write the tables."""
    results = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    for key, arguments in _cases():
        if key not in results:
            print(key, file=sys.stderr)
            results[key] = _plan(arguments)
            RESULTS.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    text = PAGE.read_text("utf-8")
    PAGE.write_text(fill(text, make_tables(results)), "utf-8")
    return 0


def _cases() -> Iterator[tuple[str, list[str]]]:
    """Name each plan, and the arguments of its command."""
    for config in _CONFIGS:
        for topology in _SMALL_SLICES:
            arguments = ["--config", config, "--topology", topology]
            if config == "finetune_vit_cifar10":  # its weights need not be there
                arguments.append("--config.init_from=None")
            yield f"{config} | {topology}", arguments
    for model in ("vit_b16", "vit_l16"):
        for variant, changes in _VARIANTS.items():
            for topology, variants in _LARGE_SLICES.items():
                is_left_out = topology != "v5e:2x2" and model == "vit_b16"
                if is_left_out or variant not in variants:
                    continue
                fields = (f"model.name={model}", *_LARGE, *changes)
                arguments = ["--config", "finetune_vit_cifar10"]
                arguments += ["--topology", topology]
                arguments += [f"--config.{field}" for field in fields]
                yield f"{model} | {topology} | {variant}", arguments


def _plan(arguments: list[str]) -> dict[str, Any]:
    """Run the command."""
    command = [sys.executable, "-m", "train_jax.plan", "--json", *arguments]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode not in (0, 1):
        raise SystemExit(process.stderr)
    libtpu = importlib.metadata.version("libtpu")
    return json.loads(process.stdout) | {"libtpu": libtpu}


def make_tables(results: dict[str, Any]) -> str:
    """Make a table of the configs, and one of the large models."""
    head = (
        "memory, GiB | products, TFLOP | sent, MiB | step at least, ms | MFU at most |"
    )
    rule = "--:|--:|--:|--:|--:|"
    small = [f"| config | slice | batch | {head}", f"|---|---|--:|{rule}"]
    large = [f"| model | | slice | {head}", f"|---|---|---|{rule}"]
    for key in [key for key, _ in _cases() if key in results]:
        plan = results[key]
        name, topology, *variant = key.split(" | ")
        numbers = " | ".join(_numbers(plan))
        if variant:
            large.append(f"| {name} | {variant[0]} | {topology} | {numbers} |")
        else:
            batch = f"{plan['batch_size']:,}"
            small.append(f"| `{name}` | {topology} | {batch} | {numbers} |")
    return "\n".join([*small, "", *large, ""])


def _numbers(plan: dict[str, Any]) -> list[str]:
    """Write the numbers of a plan, a column each."""
    memory = f"{plan['needed'] / 2**30:.2f}"
    if not plan["fits"]:
        largest = plan.get("largest_batch_size", "none")
        advice = f"does not fit; a batch of {largest} does"
        return [memory, f"{plan['flops'] / 1e12:.3g}", advice, "", ""]
    return [
        memory,
        f"{plan['flops'] / 1e12:.3g}",
        f"{sum(plan['collectives'].values()) / 2**20:,.1f}",
        f"{1000 * plan['step']:.3g}",
        f"{plan['mfu']:.0%}",
    ]


if __name__ == "__main__":
    sys.exit(main())
