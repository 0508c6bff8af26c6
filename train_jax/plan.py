"""Estimate memory and step time on TPUs without having them, by compiling ahead.

python -m train_jax.plan --config vit_cifar10 --topology v5e:2x2 compiles the training's
own step for a TPU slice, and reads what it takes.
"""

import argparse
import dataclasses
import json
import signal
import sys
from typing import Any

from train_jax.cli import arguments as cli
from train_jax.cli import console
from train_jax.config.config import load_config
from train_jax.config.fields import Config
from train_jax.devices import processes
from train_jax.devices.collectives import KINDS
from train_jax.devices.topology import Topology, make_topology
from train_jax.run.step_plan import Bounds, Plan, make_plan

_PROGRAM = "python -m train_jax.plan"
_DESCRIPTION = """\
Compile the training step of a config for devices that are not here. Say whether it fits
in their memory, what it computes and exchanges, and how fast it can be at most. The
exit code is 1 if it does not fit.
"""
_TERA, _MILLI = 1e12, 1e-3


def main(arguments: list[str]) -> int:
    """Parse the command line, print the plan, and return the exit code."""
    console.prepare_output()
    options, overrides = cli.parse(_make_parser(), arguments)
    console.silence_libraries()
    largest = None
    try:
        topology = make_topology(options.topology)
        processes.check_devices()  # some arrays are made
        config = load_config(options.config, overrides)
        if config.dtype == "auto":
            dtype = "float32" if topology.chip is None else "bfloat16"
            config = dataclasses.replace(config, dtype=dtype)
        if options.batch_size == "auto":
            unit = len(topology.devices) * config.accumulation_steps
            size = max(config.batch_size // unit, 1) * unit
            config = dataclasses.replace(config, batch_size=size)
        plan = make_plan(config, topology)
        if options.batch_size == "auto" or not plan.fits:
            largest = _find_largest(config, topology, plan)
    except KeyboardInterrupt:
        print(f"{_PROGRAM}: stopped", file=sys.stderr)
        return 128 + signal.SIGINT
    except (OSError, ValueError) as error:
        console.print_error(_PROGRAM, error)
        return 2
    if options.batch_size == "auto" and largest is not None:
        plan = largest
    if options.json:
        print(json.dumps(_to_json(plan, topology, largest)))
    else:
        print("\n".join(_describe(plan, topology, options.topology)))
        if not plan.fits:
            print(_advise(largest))
    return 0 if plan.fits else 1


def _make_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(_PROGRAM, _DESCRIPTION)
    parser.add_argument(
        "--topology",
        required=True,
        metavar="KIND:SIZE",
        help="v4, v5e, v5p or v6e and the shape of the slice, such as v5e:4x4; "
        "2*v5e:4x4 for two slices; cpu:8 for virtual CPUs",
    )
    parser.add_argument(
        "--batch_size",
        choices=("auto",),
        help="look for the largest batch that fits, to within an eighth",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _find_largest(config: Config, topology: Topology, plan: Plan) -> Plan | None:
    """Find the largest batch that fits, to within an eighth; None if none does."""
    unit = len(topology.devices) * config.accumulation_steps
    fits, low = (plan, plan.batch_size) if plan.fits else (None, 0)
    high = None if plan.fits else plan.batch_size
    while high is None or high - low > max(unit, low // 8):
        size = 2 * low if high is None else (low + high) // 2
        size = min(size, plan.num_examples) // unit * unit
        if size in (low, 0):
            break
        try:
            tried = make_plan(dataclasses.replace(config, batch_size=size), topology)
        except ValueError:  # with a warm-up as long as the training, for instance
            break
        verb = "fits" if tried.fits else "does not fit"
        print(f"a batch of {size} {verb}", file=sys.stderr)
        if tried.fits:
            fits, low = tried, size
        else:
            high = size
    return fits


def _describe(plan: Plan, topology: Topology, name: str) -> list[str]:
    """Describe a plan in lines of text."""
    num_devices, chip = len(topology.devices), topology.chip
    each = plan.examples_per_step / num_devices
    runs = f" of each of {plan.num_runs} runs" if plan.num_runs > 1 else ""
    lines = [
        f"{num_devices} devices of {name}, batch {plan.batch_size:,}{runs} ({each:g} "
        "each)",
        "",
        "memory of each device",
        *(f"  {part:26} {_size(size):>16}" for part, size in plan.memory.items()),
    ]
    total = f"  {'together':26} {_size(plan.needed):>16}"
    if chip is not None:
        fits = "fits" if plan.fits else "does not fit"
        total += f"  {fits} into {_size(chip.memory)}"
    lines.append(total)
    if not plan.fits:
        return lines
    bounds = plan.bounds(chip)
    lines += ["", "a step of each device"]
    rows = [
        ("products", f"{plan.flops / _TERA:.4g} TFLOP", bounds.products),
        ("memory read and written", _size(plan.traffic), bounds.traffic),
    ]
    for kind in KINDS:
        found = [each for each in plan.collectives if each.kind == kind]
        if found:
            count, size = sum(x.times for x in found), sum(x.sent for x in found)
            seconds = size / chip.link_bandwidth if chip else None
            rows.append((f"{count} × {kind}", f"{_size(size)} sent", seconds))
    for name, amount, seconds in rows:
        time = "" if seconds is None else f"  {seconds / _MILLI:8.3f} ms at least"
        lines.append(f"  {name:26} {amount:>16}{time}")
    return lines + _describe_bounds(plan, bounds)


def _size(size: float) -> str:
    """Write a size as people do: 3.5 MiB."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"


def _describe_bounds(plan: Plan, bounds: Bounds) -> list[str]:
    """Describe how fast the training can be."""
    if bounds.step is None or bounds.mfu is None:
        return []
    images = plan.examples_per_step / bounds.step
    epoch = plan.steps_per_epoch * bounds.step
    return [
        "",
        f"at most {images:,.0f} images/s: a step takes at least "
        f"{bounds.step / _MILLI:.3g} ms, an epoch {epoch:.3g} s",
        f"at most {bounds.mfu:.0%} of the chip's operations are the model's (MFU)",
    ]


def _advise(largest: Plan | None) -> str:
    """Say what would fit."""
    if largest is None:
        return "no batch fits; config.fsdp, config.model.remat and more chips take less"
    return (
        f"config.batch_size={largest.batch_size} fits; so may more with config.fsdp, "
        "config.model.remat, config.accumulation_steps or more chips"
    )


def _to_json(plan: Plan, topology: Topology, largest: Plan | None) -> dict[str, Any]:
    """Describe a plan as one JSON object; sizes are bytes, times seconds."""
    sent = {kind: 0.0 for kind in KINDS}
    for each in plan.collectives:
        sent[each.kind] += each.sent
    described = dataclasses.asdict(plan) | {
        "num_devices": len(topology.devices),
        "collectives": {kind: size for kind, size in sent.items() if size},
        **plan.bounds(topology.chip)._asdict(),
    }
    if largest is not None:
        described["largest_batch_size"] = largest.batch_size
    return described


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
