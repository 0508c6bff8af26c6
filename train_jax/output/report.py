"""Progress bar, TensorBoard and metrics.jsonl."""

import datetime
import time
from collections.abc import Callable, Sequence
from typing import Any

import rich.box
import rich.console
import rich.progress
import rich.table

from train_jax.data import Split
from train_jax.output import workdir as wd
from train_jax.output.metrics import (
    append_metrics,
    deviation,
    mean,
    metrics_from_json,
)
from train_jax.output.summary import describe_devices
from train_jax.output.tensorboard import EventLog
from train_jax.storage.store import Path

_FORMS = (
    ("test_accuracy", ".2%"),
    ("test_loss", ".4f"),
    ("test_accuracy_augmented", ".2%"),
)

# Between two lines of progress where there is no terminal to draw a bar on.
_PLAIN_SECONDS = 30.0
# The ETA follows the speed of the last five minutes: before, a laptop may have slept.
_ETA_SECONDS = 300.0


class Report:
    """Reports on a run, or several in one program, on the console and on disk."""

    def __init__(
        self,
        workdir: Path,
        *,
        first_step: int,
        total_steps: int,
        epochs: int,
        run_names: Sequence[str] = ("",),
        check_lock: Callable[[], object] = lambda: None,
    ):
        """Open the run's logs.

        Args:
            workdir: the run's folder.
            first_step: number of steps done before.
            total_steps: number of steps at the end of the run.
            epochs: number of epochs, for the display.
            run_names: a name for each of several runs.
            check_lock: called before each write; an OSError stops it.
        """
        self._check_lock = check_lock
        self._metrics = workdir / wd.METRICS
        self._console = rich.console.Console(highlight=False)
        self._events = EventLog(workdir / wd.TENSORBOARD, first_step=first_step + 1)
        self._run_names = run_names
        self._epochs = epochs
        self._total_steps = total_steps
        self._last_line = time.monotonic()
        self._progress = _make_progress(self._console)
        self._task = self._progress.add_task(
            "training",
            total=total_steps,
            completed=first_step,
            epoch="-",
            loss="-",
            rate="-",
        )

    def __enter__(self) -> "Report":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
        self._events.close()

    def show_progress(
        self, step: int, *, epoch: int, loss: float, images_per_second: float
    ) -> None:
        """Update the progress bar; without a terminal, print a line now and then."""
        where = f"{epoch}/{self._epochs}"
        rate = f"{images_per_second:,.0f}"
        self._progress.update(
            self._task, completed=step, epoch=where, loss=f"{loss:.4f}", rate=rate
        )
        is_due = time.monotonic() - self._last_line > _PLAIN_SECONDS
        if is_due and not self._console.is_terminal:
            self._last_line = time.monotonic()
            left = self._progress.tasks[0].time_remaining
            eta = "-" if left is None else datetime.timedelta(seconds=left)
            print(
                f"epoch {where}  step {step}/{self._total_steps}  loss {loss:.4f}  "
                f"{rate} img/s  ETA {eta}",
                flush=True,
            )

    def log_epoch(self, record: dict[str, Any]) -> None:
        """Log the metrics of an epoch: console, metrics.jsonl, TensorBoard.

        Args:
            record: see `metrics_to_json`.
        """
        self._check_lock()
        append_metrics(self._metrics, record)
        scalars = {}
        for name, value in record.items():
            if name in ("epoch", "step"):
                continue
            scalars[name] = mean(metrics_from_json(value))
            if isinstance(value, list):
                for run_name, of_run in zip(self._run_names, value, strict=True):
                    if of_run is not None:
                        scalars[f"{name}/{run_name}"] = of_run
        self._events.log(record["step"], scalars)
        width = len(str(self._epochs))
        results = (
            f"{split} loss {_format(record[f'{split}_loss'], '.4f')} "
            f"acc {_format(record[f'{split}_accuracy'], '6.2%')}  "
            for split in ("train", "val")
            if f"{split}_loss" in record
        )
        self._console.print(
            f"epoch {record['epoch']:>{width}}/{self._epochs}  {''.join(results)}"
            f"{record['images_per_second']:,.0f} img/s  {record['seconds']:.1f} s",
            soft_wrap=True,
        )
        self._last_line = time.monotonic()


def _make_progress(console: rich.console.Console) -> rich.progress.Progress:
    """Make a progress bar, which is drawn on a terminal alone."""
    return rich.progress.Progress(
        rich.progress.TextColumn("epoch {task.fields[epoch]}"),
        rich.progress.BarColumn(),
        rich.progress.TextColumn("step {task.completed}/{task.total}"),
        rich.progress.TextColumn("loss {task.fields[loss]}"),
        rich.progress.TextColumn("{task.fields[rate]} img/s"),
        rich.progress.TextColumn("ETA"),
        rich.progress.TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
        get_time=time.monotonic,
        speed_estimate_period=_ETA_SECONDS,
        transient=True,
        disable=not console.is_terminal,
    )


def _format(value: float | list[float | None], form: str) -> str:
    """Format a metric: of several runs the mean and standard deviation."""
    value_R = metrics_from_json(value)
    text = format(mean(value_R), form)
    if len(value_R) == 1:
        return text
    return f"{text} ± {format(deviation(value_R), form).lstrip()}"


def print_overview(
    fields: dict[str, Any], splits: Sequence[Split | None], *, num_runs: int
) -> None:
    """Print what is trained, on what.

    Args:
        fields: the config.
        splits: for training, validation and test.
        num_runs: number of runs in the program.
    """
    times = f"{num_runs} runs of " if num_runs > 1 else ""
    sizes = [len(split or ()) for split in splits]
    print(
        f"{times}{fields['model.name']} on {fields['dataset.name']}: "
        "{:,} examples to train on, {:,} to validate, {:,} to test; ".format(*sizes)
        + describe_devices()
    )


def print_summary(summary: dict[str, Any], workdir: Path) -> None:
    """Print the results of a run."""
    runs = summary.get("runs", [])
    if runs:
        _print_runs(runs)
    spread = {
        name: f" ± {summary[f'{name}_std']:{form}}" if runs else ""
        for name, form in _FORMS
        if name in summary
    }
    print(
        "  ".join(
            f"{name.replace('_', ' ')} {summary[name]:{form}}{spread[name]}"
            for name, form in _FORMS
            if name in summary
        )
    )
    print(
        f"{summary['steps']:,} steps in {summary['train_seconds']:.1f} s "
        f"({summary['images_per_second']:,.0f} img/s) on {summary['device']}"
    )
    print(f"results in {workdir}")


def _print_runs(runs: Sequence[dict[str, Any]]) -> None:
    """Print the table of several runs."""
    results = [name for name in ("val_accuracy", *dict(_FORMS)) if name in runs[0]]
    hidden = {*results, "val_loss", "diverged_in_step"}
    fields = [name for name in runs[0] if name not in hidden]
    table = rich.table.Table(
        *(name.rpartition(".")[2] for name in fields), box=rich.box.SIMPLE
    )
    for name in results:
        table.add_column(name.replace("_", " "), justify="right")
    for run in runs:
        cells = [
            str(run[name]) if isinstance(run[name], int) else format(run[name], "g")
            for name in fields
        ]
        if run["diverged_in_step"] is None:
            cells += [
                "not finite"
                if run[name] is None
                else format(run[name], ".4f" if "loss" in name else ".2%")
                for name in results
            ]
        else:
            cells += [f"diverged in step {run['diverged_in_step']}"]
        table.add_row(*cells)
    rich.console.Console().print(table)
