"""Train a model as a config says: `python train.py --config configs/vit_digits.py`."""

import sys

from train_jax.cli.signals import StopRequest

_DESCRIPTION = """\
Train a model, evaluate it, and leave the results in a folder.
A second start with the same folder resumes the run where it was interrupted.
"""


def main(arguments: list[str]) -> int:
    """Listen for signals, run the experiment, and return the exit code."""
    with StopRequest(is_setting_up=True) as stop_request:
        return _run(arguments, stop_request)


def _run(arguments: list[str], stop_request: StopRequest) -> int:
    # All that takes time is imported here: signals are listened for, --help and a
    # mistyped flag answer at once.
    from train_jax.cli import arguments as cli

    cli.prepare_output()
    parser = cli.make_parser("train.py", _DESCRIPTION)
    start = parser.add_mutually_exclusive_group()
    start.add_argument(
        "--overwrite", action="store_true", help="delete the run that lies there first"
    )
    start.add_argument(
        "--extend",
        action="store_true",
        help="train a run on to a larger num_epochs or num_steps, with the schedule of "
        "that length",
    )
    cli.add_process_flags(parser)
    options, overrides = cli.parse(parser, arguments)
    cli.silence_libraries()
    from train_jax.config.config import load_config
    from train_jax.devices import compiler, processes
    from train_jax.output import report
    from train_jax.output.workdir import WorkdirError
    from train_jax.run import experiment, loop

    how = {"overwrite": options.overwrite, "extend": options.extend}
    with processes.ending_together("train.py"):
        try:
            with stop_request.interrupting():
                config = load_config(options.config, overrides)
                processes.join(
                    options.coordinator, options.num_processes, options.process_id
                )
                compiler.enable_compilation_cache()
                if not processes.is_main():
                    cli.silence_stdout()
                summary = (
                    None
                    if options.overwrite
                    else loop.read_finished(options.workdir, config)
                )
                if summary is None:
                    ready = experiment.set_up(config, options.workdir, **how)
        except KeyboardInterrupt:
            print("train.py: stopped before the training began", file=sys.stderr)
            return cli.STOPPED
        except ValueError as error:
            cli.print_error("train.py", error)
            return 2
        try:
            if summary is None:
                summary = loop.train_and_evaluate(ready, stop_request, **how)
        except WorkdirError as error:
            cli.print_error("train.py", error)
            return 2
        except loop.Failed as error:
            cli.print_error("train.py", error)
            return cli.FAILED
        except loop.Stopped as stopped:
            print(f"train.py: {stopped}", file=sys.stderr)
            return cli.STOPPED
        if processes.is_main():
            report.print_summary(summary, options.workdir)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
