"""Train a model as a config says: `python train.py --config configs/vit_digits.py`."""

import argparse
import pathlib
import sys

_DESCRIPTION = """\
Train an image classifier, evaluate it, and leave the results in a folder.

Every field of the config can be set on the command line, for example
  python train.py --config configs/vit_mnist.py --config.optimizer.learning_rate=1e-3
A second start with the same folder resumes the run where it was interrupted.
"""


def main(arguments: list[str]) -> int:
    """Parse the command line, run the experiment, and return the exit code."""
    options, overrides = _parse(arguments)
    # Imported here, so that --help and a mistyped flag answer at once.
    from train_jax import experiment, loop, report
    from train_jax.config import load_config

    workdir = options.workdir or pathlib.Path("runs", pathlib.Path(options.config).stem)
    try:
        config = load_config(options.config, overrides)
        ready = experiment.set_up(config, workdir, overwrite=options.overwrite)
    except ValueError as error:
        print(f"train.py: error: {error}", file=sys.stderr)
        return 2
    try:
        summary = loop.train_and_evaluate(ready)
    except FloatingPointError as error:
        print(f"train.py: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; the same command resumes the run", file=sys.stderr)
        return 130
    report.print_summary(summary, workdir)
    return 0


def _parse(arguments: list[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    """Split the command line into options and the config's new values."""
    parser = argparse.ArgumentParser(
        prog="train.py",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", required=True, help="a Python file with get_config()"
    )
    parser.add_argument(
        "--workdir",
        type=pathlib.Path,
        help="folder for the results (default: runs/<name of the config>)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="delete the run that lies there first"
    )
    options, rest = parser.parse_known_args(arguments)
    overrides = {}
    for argument in rest:
        field, equals, value = argument.removeprefix("--config.").partition("=")
        if not argument.startswith("--config.") or not equals:
            parser.error(f"expected --config.FIELD=VALUE, got {argument!r}")
        overrides[field] = value
    return options, overrides


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
