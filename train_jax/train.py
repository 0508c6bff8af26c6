"""Train a model as a config says: python -m train_jax.train --config vit_digits."""

import sys
from typing import TYPE_CHECKING

from train_jax.cli.huge_pages import restart_with_huge_pages
from train_jax.cli.signals import StopRequest

if TYPE_CHECKING:
    import argparse

_PROGRAM = "train.py"
_DESCRIPTION = """\
Train a model, evaluate it, and leave the results in a folder.
A second start with the same folder resumes the run where it was interrupted.
"""


def main(arguments: list[str]) -> int:
    """Handle signals, run the command, and return the exit code."""
    with StopRequest(is_setting_up=True) as stop_request:
        return _run(arguments, stop_request)


def _run(arguments: list[str], stop_request: StopRequest) -> int:
    # All that takes time is imported here: signals are handled from the start, --help
    # and a mistyped flag answer at once.
    from train_jax.cli import arguments as cli
    from train_jax.cli import console

    console.prepare_output()
    options, overrides = cli.parse(_make_parser(), arguments)
    console.silence_libraries()
    try:
        from train_jax.devices import processes
        from train_jax.run import experiment  # noqa: F401 (needs the extra [train])
    except ModuleNotFoundError as error:
        error.msg += ': pip install "vit-resnet-jax[train]"'
        console.print_error(_PROGRAM, error)
        return 2
    with processes.ending_together(_PROGRAM):
        return _train(options, overrides, stop_request)


def _train(
    options: "argparse.Namespace", overrides: dict[str, str], stop_request: StopRequest
) -> int:
    from train_jax.cli import console
    from train_jax.config.config import load_config
    from train_jax.devices import compiler, processes
    from train_jax.output import report
    from train_jax.output.workdir import WorkdirError
    from train_jax.run import experiment, failures

    try:
        with stop_request.interrupting():
            config = load_config(options.config, overrides)
            processes.join(
                options.coordinator, options.num_processes, options.process_id
            )
            compiler.enable_compilation_cache()
            if not processes.is_main():
                console.silence_stdout()
            run = experiment.prepare_run(
                config,
                options.workdir,
                overwrite=options.overwrite,
                extend=options.extend,
            )
    except KeyboardInterrupt:
        print(f"{_PROGRAM}: stopped before the training began", file=sys.stderr)
        processes.limit_end(console.STOPPED)
        return console.STOPPED
    except (OSError, ValueError) as error:
        console.print_error(_PROGRAM, error)
        processes.limit_end(2)
        return 2
    try:
        summary = run(stop_request)
    except WorkdirError as error:
        console.print_error(_PROGRAM, error)
        return 2
    except failures.Failed as error:
        console.print_error(_PROGRAM, error)
        if not isinstance(error, failures.Diverged):  # as it has in all processes
            processes.limit_end(console.FAILED)
        return console.FAILED
    except failures.Stopped as stopped:
        print(f"{_PROGRAM}: {stopped}", file=sys.stderr)
        return console.STOPPED
    if processes.is_main():
        report.print_summary(summary, options.workdir)
    return 0


def _make_parser() -> "argparse.ArgumentParser":
    from train_jax.cli import arguments as cli

    parser = cli.make_parser(_PROGRAM, _DESCRIPTION)
    cli.add_workdir_flag(parser)
    cli.add_start_flags(parser)
    cli.add_process_flags(parser)
    return parser


if __name__ == "__main__":
    restart_with_huge_pages()
    sys.exit(main(sys.argv[1:]))
