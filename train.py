"""Train a model as a config says: `python train.py --config configs/vit_digits.py`."""

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
    options, overrides = cli.parse(parser, arguments)
    # Imported here, so that --help and a mistyped flag answer at once.
    from train_jax import experiment, loop, report
    from train_jax.config import load_config

    try:
        config = load_config(options.config, overrides)
        ready = experiment.set_up(config, options.workdir, overwrite=options.overwrite)
    except ValueError as error:
        cli.complain("train.py", error)
        return 2
    try:
        summary = loop.train_and_evaluate(ready)
    except FloatingPointError as error:
        cli.complain("train.py", error)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; the same command resumes the run", file=sys.stderr)
        return 130
    report.print_summary(summary, options.workdir)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
