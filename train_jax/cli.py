"""What the commands share: a config, its fields as flags, and a line for a mistake."""

import argparse
import logging
import pathlib
import sys

# Exit codes of a run that cannot go on, and of one that was asked to stop and goes on
# when it is started again (EX_TEMPFAIL). Wrong input is 2, as with argparse.
FAILED, STOPPED = 1, 75

_HELP = """\
Every field of the config can be set on the command line, for example
  --config.optimizer.learning_rate=1e-3
"""


def make_parser(program: str, description: str) -> argparse.ArgumentParser:
    """Make a parser for a command that takes --config and --workdir.

    Args:
        program: how the command is called.
        description: what it does.
    """
    parser = argparse.ArgumentParser(
        prog=program,
        description=f"{description}\n{_HELP}",
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
    return parser


def add_process_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags for training with several processes."""
    group = parser.add_argument_group(
        "several processes",
        "Start the command in each; under SLURM, Open MPI and on TPU slices of GKE "
        "without flags.",
    )
    group.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help='of process 0; "auto" to ask the cluster',
    )
    group.add_argument("--num_processes", type=int, help="how many there are")
    group.add_argument("--process_id", type=int, help="which one this is, from 0")


def parse(
    parser: argparse.ArgumentParser, arguments: list[str]
) -> tuple[argparse.Namespace, dict[str, str]]:
    """Split the command line into options and the config's new values."""
    options, rest = parser.parse_known_args(arguments)
    overrides = {}
    for argument in rest:
        field, equals, value = argument.removeprefix("--config.").partition("=")
        if not argument.startswith("--config.") or not equals:
            parser.error(f"expected --config.FIELD=VALUE, got {argument!r}")
        overrides[field] = value
    if options.workdir is None:
        options.workdir = pathlib.Path("runs", pathlib.Path(options.config).stem)
    return options, overrides


def silence_libraries() -> None:
    """Keep Orbax from logging, with tracebacks, what it raises as well."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)


def complain(program: str, error: Exception) -> None:
    """Say in one line what is wrong."""
    print(f"{program}: error: {error}", file=sys.stderr)
