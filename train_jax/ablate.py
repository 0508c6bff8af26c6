"""Train variants of a model, and compare them in one table.

python -m train_jax.ablate --config ablation_vit_mnist
"""

from train_jax.cli.huge_pages import restart_with_huge_pages

if __name__ == "__main__":
    restart_with_huge_pages()  # before the imports, which take a while


import contextlib
import csv
import pathlib
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import rich.box
import rich.console
import rich.table

from train_jax.cli import arguments as cli
from train_jax.cli import console
from train_jax.cli.signals import StopRequest
from train_jax.config.config import load_config, to_json
from train_jax.config.fields import Config
from train_jax.config.files import read_config_file, without_numpy
from train_jax.devices import compiler, processes
from train_jax.output import lock
from train_jax.output import workdir as wd
from train_jax.output.tiles import escape_dollars, make_figure
from train_jax.run import experiment
from train_jax.run.dtype import choose_dtype
from train_jax.run.failures import Diverged, Failed, Stopped
from train_jax.run.splits import load_dataset

LOG, TABLE, PICTURE = "log.txt", "ablation.csv", "ablation.png"

_PROGRAM = "python -m train_jax.ablate"
_DESCRIPTION = """\
Train every variant that the config's get_variants() names, each with config.num_seeds
seeds, and compare them. A second start with the same folder trains what is missing.
"""

# A variant's summary, or why it has none: {"error": …}.
Result = dict[str, Any]


class Variant(NamedTuple):
    """A variant of the model: its name, its config and its run's folder."""

    name: str
    config: Config
    folder: pathlib.Path


def main(arguments: list[str]) -> int:
    """Handle signals, train what is missing, and return the exit code."""
    with StopRequest(is_setting_up=True) as stop_request:
        return _run(arguments, stop_request)


def _run(arguments: list[str], stop_request: StopRequest) -> int:
    console.prepare_output()
    parser = cli.make_parser(_PROGRAM, _DESCRIPTION)
    cli.add_workdir_flag(parser)
    cli.add_start_flags(parser)
    options, overrides = cli.parse(parser, arguments)
    console.silence_libraries()
    workdir = options.workdir
    if not isinstance(workdir, pathlib.Path):
        parser.error(f"--workdir must be a path on this machine, got {str(workdir)!r}")
    try:
        with stop_request.interrupting():
            processes.check_devices()
            compiler.enable_compilation_cache()
            variants = list_variants(
                options.config,
                overrides,
                workdir,
                overwrite=options.overwrite,
                extend=options.extend,
            )
            with wd.naming_workdir(workdir, " cannot be written"):
                held = lock.acquire(workdir)
    except KeyboardInterrupt:
        print(f"{_PROGRAM}: stopped before the training began", file=sys.stderr)
        return console.STOPPED
    except (OSError, ValueError) as error:
        console.print_error(_PROGRAM, error)
        return 2
    try:
        with contextlib.closing(held):
            for variant in variants:  # before hours have gone by
                wd.prepare_workdir(
                    variant.folder,
                    to_json(variant.config),
                    overwrite=options.overwrite,
                )
            results = [
                _train_and_print(
                    variant,
                    f"{number}/{len(variants)}",
                    stop_request,
                    extend=options.extend,
                )
                for number, variant in enumerate(variants, start=1)
            ]
            held.check()
            write_results(variants, results, workdir)
    except Stopped as stopped:
        print(f"{_PROGRAM}: {stopped}", file=sys.stderr)
        return console.STOPPED
    except (Failed, wd.WorkdirError, OSError) as error:
        console.print_error(_PROGRAM, error)
        return console.FAILED
    return console.FAILED if all("error" in result for result in results) else 0


def list_variants(
    config_path: str,
    overrides: Mapping[str, str],
    workdir: pathlib.Path,
    *,
    overwrite: bool = False,
    extend: bool = False,
) -> list[Variant]:
    """List every variant with its complete config.

    Args:
        config_path: see `load_config`.
        overrides: likewise.
        workdir: has a folder for each variant.
        overwrite: see `check_workdir`.
        extend: likewise.

    Raises:
        ValueError: naming the variant and what is wrong with it; also if the data are
            missing or the folder cannot be used, which would fail all variants.
    """
    given: Any = read_config_file(config_path, "get_variants")
    is_dict = isinstance(given, Mapping) and len(given) > 0
    if not is_dict or not all(isinstance(it, Mapping) for it in given.values()):
        raise ValueError(
            f"--config {config_path!r}: get_variants() must return a dict, name → dict "
            f"of fields, got {given!r}"
        )
    if (workdir / wd.CONFIG).exists():
        raise ValueError(f"--workdir {str(workdir)!r} is the folder of a run")
    variants, datasets = [], []
    for name, changes in given.items():
        changed = {
            field: repr(without_numpy(value)) for field, value in changes.items()
        }
        label = re.sub(r"\W+", "_", str(name).lower()).strip("_")
        folder = workdir / label
        try:
            if not label:
                raise ValueError("its name must have a letter or a digit")
            config = load_config(config_path, {**overrides, **changed})
            config = choose_dtype(config, folder, overwrite=overwrite)
            wd.check_unlocked(folder)
            wd.check_workdir(
                folder,
                to_json(config),
                overwrite=overwrite,
                extend=extend,
                deleted="all variants (to keep the others, delete this folder alone)",
            )
            crops = config.augment.crop_area is not None
            if (config.dataset, crops) not in datasets:
                load_dataset(config.dataset, crops=crops)
                datasets.append((config.dataset, crops))
        except ValueError as error:
            raise ValueError(f"variant {name!r}: {error}") from error
        for other in variants:
            if other.folder == folder:
                raise ValueError(
                    f"variant {name!r}: its folder, {str(folder)!r}, is that of "
                    f"{other.name!r}, too; rename one of them"
                )
        variants.append(Variant(name, config, folder))
    lock.check_free(workdir)
    return variants


def train_variant(
    variant: Variant,
    should_stop: Callable[[], bool] = lambda: False,
    *,
    extend: bool = False,
) -> dict[str, Any]:
    """Train a variant, unless that is done; an error of its own is its result.

    What the run prints goes to a file in its folder.

    Raises:
        WorkdirError: if another process uses the folder.
    """
    with (
        (variant.folder / LOG).open("a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
    ):
        try:
            return experiment.train_and_evaluate(
                variant.config, variant.folder, should_stop=should_stop, extend=extend
            )
        except wd.WorkdirError:
            raise
        # It cannot be built, its loss is not finite, or it needs too much memory.
        except (ValueError, Diverged, jax.errors.JaxRuntimeError, MemoryError) as error:
            return {"error": " ".join(str(error).split()) or "memory ran out"}


def _train_and_print(
    variant: Variant, position: str, should_stop: Callable[[], bool], *, extend: bool
) -> Result:
    """Train a variant, and print a line with its result."""
    is_finished = wd.read_summary(variant.folder, to_json(variant.config)) is not None
    started = time.monotonic()
    result = train_variant(variant, should_stop, extend=extend)
    took = "done before" if is_finished else f"{time.monotonic() - started:.0f} s"
    outcome = result.get("error") or f"test accuracy {result['test_accuracy']:.2%}"
    print(f"{position}  {variant.name}: {outcome} ({took})", flush=True)
    return result


def write_results(
    variants: Sequence[Variant], results: Sequence[Result], workdir: pathlib.Path
) -> None:
    """Write a row for each run as CSV, print a row for each variant, and draw them."""
    columns = ("seed", "test_accuracy", "test_loss", "val_accuracy", "diverged_in_step")
    shared = ("num_params", "images_per_second", "train_seconds", "error")
    with (workdir / TABLE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["variant", *columns, *shared])
        for variant, result in zip(variants, results, strict=True):
            for run in result.get("runs", [result]):
                values = [run.get(column, "") for column in columns]
                values += [result.get(column, "") for column in shared]
                writer.writerow([variant.name, *values])
    names = [variant.name for variant in variants]
    _print_table(names, results)
    _plot(names, results, workdir / PICTURE)
    print(f"results in {workdir}")


def _print_table(names: Sequence[str], results: Sequence[Result]) -> None:
    """Print mean and standard deviation of each variant, and what failed."""
    table = rich.table.Table("variant", box=rich.box.SIMPLE)
    for heading in ("parameters", "images/s", "accuracy, %", "change", "runs"):
        table.add_column(heading, justify="right")
    reference = results[0].get("test_accuracy")
    for name, result in zip(names, results, strict=True):
        if "error" in result:
            table.add_row(name, "", "", "failed", "", "")
            continue
        mean, count = result["test_accuracy"], len(_accuracies(result))
        spread = f" ± {100 * result['test_accuracy_std']:.2f}" if count > 1 else ""
        table.add_row(
            name,
            f"{result['num_params']:,}",
            f"{result['images_per_second']:,.0f}",
            f"{100 * mean:.2f}{spread}",
            "" if reference is None else f"{100 * (mean - reference):+.2f}",
            f"{count}/{len(result.get('runs', [result]))}",
        )
    rich.console.Console(markup=False).print(table)


def _plot(names: Sequence[str], results: Sequence[Result], path: pathlib.Path) -> None:
    """Draw each variant's runs and their mean."""
    figure = make_figure(8, 0.35 * len(names) + 1.2)
    axis = figure.subplots()
    for row, result in enumerate(results):
        if "error" in result:
            axis.text(0.5, row, "failed", transform=axis.get_yaxis_transform())
            continue
        accuracies, mean = _accuracies(result), 100 * result["test_accuracy"]
        axis.plot(accuracies, [row] * len(accuracies), "o", color="C0", alpha=0.5)
        axis.plot(mean, row, "|", color="black", ms=14)
    axis.set_yticks(range(len(names)), list(map(escape_dollars, names)))
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_xlabel("test accuracy (%): each run, and their mean")
    axis.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120)


def _accuracies(result: Result) -> list[float]:
    """The test accuracy of each run that did not diverge, in percent."""
    accuracies = [run["test_accuracy"] for run in result.get("runs", [result])]
    return [100 * accuracy for accuracy in accuracies if accuracy is not None]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
