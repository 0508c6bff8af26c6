"""Train variants of a model side by side, and compare them in one table.

python -m train_jax.ablate --config configs/ablation_vit_mnist.py
"""

import contextlib
import csv
import dataclasses
import pathlib
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import rich.box
import rich.console
import rich.table
from matplotlib.figure import Figure

from train_jax.cli import arguments as cli
from train_jax.cli.signals import StopRequest
from train_jax.config.config import Config, load_config, read_config_file
from train_jax.devices import compiler, processes
from train_jax.output import lock
from train_jax.output import workdir as wd
from train_jax.run import experiment, loop

FAILURE, LOG = "failure.json", "log.txt"
TABLE, PICTURE = "ablation.csv", "ablation.png"

_PROGRAM = "python -m train_jax.ablate"
_DESCRIPTION = """\
Train every variant that the config's get_variants() names, with every one of its SEEDS,
and compare them. A second start with the same folder trains what is missing.
"""


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
    """One variant, trained with one seed.

    Attributes:
        variant: its name.
        config: complete.
        folder: its workdir.
    """

    variant: str
    config: Config
    folder: pathlib.Path

    def result(self) -> dict[str, Any] | None:
        """What came of it: a summary, {"error": …}, or None if it is still to do."""
        summary = wd.read_summary(self.folder, self.config)
        if summary is None and (self.folder / FAILURE).exists():
            return wd.read_json(self.folder / FAILURE)
        return summary


def main(arguments: list[str]) -> int:
    """Listen for signals, train what is missing, and return the exit code."""
    with StopRequest(is_setting_up=True) as stop_request:
        return _run(arguments, stop_request)


def _run(arguments: list[str], stop_request: StopRequest) -> int:
    cli.prepare_output()
    parser = cli.make_parser(_PROGRAM, _DESCRIPTION)
    options, overrides = cli.parse(parser, arguments)
    cli.silence_libraries()
    workdir = options.workdir
    try:
        with stop_request.interrupting():
            processes.check_devices()
            compiler.enable_compilation_cache()
            trials = plan(options.config, overrides, workdir)
            held = lock.acquire(workdir)
    except KeyboardInterrupt:
        print(f"{_PROGRAM}: stopped before the training began", file=sys.stderr)
        return cli.STOPPED
    except OSError as error:
        reason = f"--workdir {str(workdir)!r} cannot be written: {error.strerror}"
        cli.print_error(_PROGRAM, ValueError(reason))
        return 2
    except ValueError as error:
        cli.print_error(_PROGRAM, error)
        return 2
    try:
        with contextlib.closing(held):
            _run_all(trials, stop_request)
            held.check()
            write_results(trials, workdir)
    except loop.Stopped as stopped:
        print(f"{_PROGRAM}: {stopped}", file=sys.stderr)
        return cli.STOPPED
    except (loop.Failed, wd.WorkdirError, OSError) as error:
        cli.print_error(_PROGRAM, error)
        return cli.FAILED
    return 0


def plan(
    config_path: str, overrides: Mapping[str, str], workdir: pathlib.Path
) -> list[Trial]:
    """List every variant with every seed, each with a complete config.

    Raises:
        ValueError: naming the variant and what is wrong with it; also if the data are
            missing or the folder cannot be written, for that is no variant's fault.
    """
    variants = read_config_file(config_path, "get_variants")
    seeds = read_config_file(config_path, "SEEDS")
    trials, datasets = [], []
    for variant, changes in variants.items():
        for seed in seeds:
            changed = {name: repr(value) for name, value in changes.items()}
            try:
                config = load_config(
                    config_path, {**overrides, **changed, "seed": str(seed)}
                )
                folder = workdir / _slug(variant) / f"seed_{seed}"
                wd.check_free(folder)
                wd.check(folder, config, overwrite=False)
                if config.dataset not in datasets:
                    experiment.load_splits(config)
                    datasets.append(config.dataset)
            except ValueError as error:
                raise ValueError(f"variant {variant!r}: {error}") from error
            trials.append(Trial(variant, config, folder))
    _check_folders(trials)
    lock.check_free(workdir)
    return trials


def _run_all(trials: Sequence[Trial], should_stop: Callable[[], bool]) -> None:
    """Train what is missing; tell of each trial in a line."""
    for trial in trials:
        wd.prepare(trial.folder, trial.config, overwrite=False)
        if not (trial.result() or {}).get("is_final", True):
            (trial.folder / FAILURE).unlink()
    for number, trial in enumerate(trials, start=1):
        _report(trial, number, len(trials), should_stop)


def _check_folders(trials: Sequence[Trial]) -> None:
    """Raise ValueError if two variants would be written to the same folder."""
    variants: dict[pathlib.Path, str] = {}
    for trial in trials:
        other = variants.setdefault(trial.folder, trial.variant)
        if other != trial.variant:
            raise ValueError(
                f"variant {trial.variant!r}: its folder, {str(trial.folder)!r}, is "
                f"that of {other!r}, too; rename one of them"
            )


def run(
    trial: Trial, should_stop: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """Train one variant with one seed; what goes wrong with it is its result.

    What the run prints goes to a file in its folder.

    Raises:
        WorkdirError: if another process uses the folder.
    """
    try:
        wd.check_free(trial.folder)
    except ValueError as error:
        raise wd.WorkdirError(str(error)) from error
    try:
        ready = experiment.set_up(trial.config, trial.folder)
    except ValueError as error:  # this variant cannot be built
        return _record_failure(trial, error)
    with (
        (trial.folder / LOG).open("a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
    ):
        try:
            return loop.train_and_evaluate(ready, should_stop)
        except loop.Diverged as error:
            return _record_failure(trial, error)
        except jax.errors.JaxRuntimeError as error:  # memory ran out, for instance
            return _record_failure(trial, error, is_final=False)


def _record_failure(
    trial: Trial, error: Exception, *, is_final: bool = True
) -> dict[str, Any]:
    """Write down why a trial failed; it is tried again if that need not be so again."""
    result = {"error": " ".join(str(error).split()), "is_final": is_final}
    wd.write_json(trial.folder / FAILURE, result)
    return result


def _report(
    trial: Trial, number: int, count: int, should_stop: Callable[[], bool]
) -> None:
    """Run a trial, unless that is done, and print a line about it."""
    result, started = trial.result(), time.monotonic()
    took = "done before"
    if result is None:
        result = run(trial, should_stop)
        took = f"{time.monotonic() - started:.0f} s"
    outcome = result.get("error") or f"test accuracy {result['test_accuracy']:.2%}"
    name = f"{trial.variant}, seed {trial.config.seed}"
    print(
        f"{number:>{len(str(count))}}/{count}  {name}: {outcome} ({took})", flush=True
    )


def write_results(trials: Sequence[Trial], workdir: pathlib.Path) -> None:
    """Write a line a run as CSV, print a line a variant, and draw them."""
    results = {trial: trial.result() or {} for trial in trials}
    columns = ("test_accuracy", "test_loss", "val_accuracy", "num_params")
    columns += ("images_per_second", "train_seconds", "error")
    with (workdir / TABLE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["variant", "seed", *columns])
        for trial, result in results.items():
            values = [result.get(column, "") for column in columns]
            writer.writerow([trial.variant, trial.config.seed, *values])

    variants: dict[str, list[dict[str, Any]]] = {}
    for trial, result in results.items():
        variants.setdefault(trial.variant, []).append(result)
    _print_table(variants)
    _plot(variants, workdir / PICTURE)
    print(f"results in {workdir}")


def _print_table(variants: Mapping[str, list[dict[str, Any]]]) -> None:
    """Print mean and standard deviation of each variant, and what failed."""
    table = rich.table.Table("variant", box=rich.box.SIMPLE)
    for heading in ("parameters", "images/s", "accuracy, %", "change", "runs"):
        table.add_column(heading, justify="right")
    reference = _accuracies(next(iter(variants.values())))
    for name, results in variants.items():
        accuracies = _accuracies(results)
        if not accuracies:
            table.add_row(name, "", "", "failed", "", f"0/{len(results)}")
            continue
        done = [result for result in results if "error" not in result]
        mean = statistics.mean(accuracies)
        difference = f"{mean - statistics.mean(reference):+.2f}" if reference else ""
        table.add_row(
            name,
            f"{done[0]['num_params']:,}",
            f"{statistics.median(r['images_per_second'] for r in done):,.0f}",
            f"{mean:.2f} ± {_deviation(accuracies):.2f}",
            difference,
            f"{len(done)}/{len(results)}",
        )
    rich.console.Console().print(table)


def _plot(variants: Mapping[str, list[dict[str, Any]]], path: pathlib.Path) -> None:
    """Draw each variant's runs and their mean."""
    figure = Figure(figsize=(8, 0.35 * len(variants) + 1.2), layout="constrained")
    axis = figure.subplots()
    for row, results in enumerate(variants.values()):
        accuracies = _accuracies(results)
        if accuracies:
            axis.plot(accuracies, [row] * len(accuracies), "o", color="C0", alpha=0.5)
            axis.plot(statistics.mean(accuracies), row, "|", color="black", ms=14)
        else:
            axis.text(0.5, row, "failed", transform=axis.get_yaxis_transform())
    axis.set_yticks(range(len(variants)), list(variants))
    axis.set_ylim(len(variants) - 0.5, -0.5)
    axis.set_xlabel("test accuracy (%): each run, and their mean")
    axis.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120)


def _accuracies(results: Sequence[dict[str, Any]]) -> list[float]:
    """The test accuracies, in percent, of the runs that came to an end."""
    return [100 * r["test_accuracy"] for r in results if "test_accuracy" in r]


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _slug(name: str) -> str:
    """Turn a variant's name into one for a folder."""
    return re.sub(r"\W+", "_", name.lower()).strip("_")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
