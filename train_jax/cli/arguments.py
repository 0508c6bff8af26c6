"""Command-line arguments: --config and its fields as flags, --workdir and others."""

import argparse
import pathlib
import re
from typing import Any

from train_jax.cli.config_help import describe_config
from train_jax.config.fields import TABLE
from train_jax.config.files import split_argument
from train_jax.config.options import closest
from train_jax.storage.paths import cache_folder
from train_jax.storage.store import Path, any_path

_HELP = """\
Every field of the config can be set on the command line, for example
  --config.optimizer.learning_rate=1e-3  or  --config.optimizer.learning_rate 1e-3
"""


def make_parser(program: str, description: str) -> argparse.ArgumentParser:
    """Make a parser for a command that takes --config.

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
        "--config",
        required=True,
        metavar="FILE[:ARGUMENT]",
        help="a Python file with get_config(), which may take an argument, or the name "
        "of a bundled config",
    )
    return parser


def add_workdir_flag(parser: argparse.ArgumentParser) -> None:
    """Add the flag that names the folder of a run."""
    parser.add_argument(
        "--workdir",
        help="folder for the results, also gs://BUCKET/FOLDER (default: runs/<name of "
        "the config>)",
    )


def add_start_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags for what to do with a run that lies in the folder."""
    start = parser.add_mutually_exclusive_group()
    start.add_argument(
        "--overwrite", action="store_true", help="delete the run that lies there first"
    )
    start.add_argument(
        "--extend",
        action="store_true",
        help="train an existing run for longer (larger num_epochs or num_steps), on "
        "the longer schedule",
    )


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
        help='address of process 0; "auto": ask the cluster',
    )
    group.add_argument("--num_processes", type=int, help="how many there are")
    group.add_argument("--process_id", type=int, help="which one this is, from 0")


def add_checkpoint_flag(parser: Any) -> None:
    """Add the flag that names a checkpoint of a run."""
    parser.add_argument(
        "--checkpoint",
        default="last",
        metavar="last|best|STEP",
        help="the newest, the one that validated best, or that of a step "
        "(default: last)",
    )


def parse(
    parser: argparse.ArgumentParser, arguments: list[str]
) -> tuple[argparse.Namespace, dict[str, str]]:
    """Split the command line into options and the config's new values."""
    rest, overrides = _split_overrides(parser, arguments)
    if {"-h", "--help"} & set(rest):
        parser.epilog = describe_config(overrides)
    options, unknown = parser.parse_known_args(rest)
    for argument in unknown:
        parser.error(
            f"expected --config.FIELD=VALUE, got {argument!r}{_hint(argument)}"
        )
    try:
        if "workdir" in options:
            options.workdir = _workdir(options)
        # Before a library makes folders of the same variable.
        cache_folder()
    except ValueError as error:
        parser.error(str(error))
    return options, overrides


def _split_overrides(
    parser: argparse.ArgumentParser, arguments: list[str]
) -> tuple[list[str], dict[str, str]]:
    """Take --config.FIELD=VALUE and --config.FIELD VALUE out of the arguments."""
    rest, overrides, remaining = [], {}, list(arguments)
    while remaining:
        argument = remaining.pop(0)
        if not argument.startswith("--config."):
            rest.append(argument)
            continue
        field, equals, value = argument.removeprefix("--config.").partition("=")
        if not equals:
            if not remaining or remaining[0].startswith("--"):
                parser.error(f"expected --config.FIELD=VALUE, got {argument!r}")
            value = remaining.pop(0)
        overrides[field] = value
    return rest, overrides


def _hint(argument: str) -> str:
    """Name the field that a flag without `--config.` may mean."""
    field = argument.removeprefix("--").partition("=")[0]
    close = closest(field, TABLE) if argument.startswith("--") else None
    return f"; did you mean --config.{close}?" if close else ""


def _workdir(options: argparse.Namespace) -> Path:
    """The run's folder: the flag's, or one named after the config."""
    if options.workdir is not None:
        return any_path(options.workdir, "--workdir")
    file, *argument = split_argument(options.config)
    name = pathlib.Path(file).name.removesuffix(".py")
    words = [name, *re.findall(r"[\w.-]+", "".join(argument))]
    return pathlib.Path("runs", "_".join(words))
