"""Train a model as a config says: `python train.py --config configs/vit_digits.py`."""

import contextlib
import os
import sys

from train_jax import cli

_DESCRIPTION = """\
Train a model, evaluate it, and leave the results in a folder.
A second start with the same folder resumes the run where it was interrupted.
"""


def main(arguments: list[str]) -> int:
    """Parse the command line, run the experiment, and return the exit code."""
    parser = cli.make_parser("train.py", _DESCRIPTION)
    parser.add_argument(
        "--overwrite", action="store_true", help="delete the run that lies there first"
    )
    cli.add_process_flags(parser)
    options, overrides = cli.parse(parser, arguments)
    cli.silence_libraries()
    # Imported here, so that --help and a mistyped flag answer at once.
    from train_jax import compiler, experiment, loop, processes, report
    from train_jax.config import load_config
    from train_jax.interrupt import StopRequest

    compiler.keep_compiled_programs()

    with processes.ending_together("train.py"), contextlib.ExitStack() as stack:
        try:
            config = load_config(options.config, overrides)
            processes.join(
                options.coordinator, options.num_processes, options.process_id
            )
            if not processes.is_main():
                silence = stack.enter_context(open(os.devnull, "w"))
                stack.enter_context(contextlib.redirect_stdout(silence))
            ready = experiment.set_up(
                config, options.workdir, overwrite=options.overwrite
            )
        except ValueError as error:
            cli.complain("train.py", error)
            return 2
        try:
            with StopRequest() as stop_request:
                summary = loop.train_and_evaluate(ready, stop_request)
        except loop.Failed as error:
            cli.complain("train.py", error)
            return cli.FAILED
        except loop.Stopped as stopped:
            print(f"train.py: {stopped}", file=sys.stderr)
            return cli.STOPPED
        report.print_summary(summary, options.workdir)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
