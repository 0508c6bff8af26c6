"""What the commands share: a config, its fields as flags, and a line for a mistake."""

import argparse
import pathlib
import sys

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


def complain(program: str, error: Exception) -> None:
    """Say in one line what is wrong."""
    print(f"{program}: error: {error}", file=sys.stderr)
