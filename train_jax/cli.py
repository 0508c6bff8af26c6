"""What the commands share: a config, its fields as flags, and a line for a mistake."""

import argparse
import hashlib
import logging
import pathlib
import platform
import sys

from train_jax.folders import cache_folder

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
        "Start the command in each; on TPU pods, SLURM and Open MPI without flags.",
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


def keep_compiled_programs() -> None:
    """Let the next start of a command find what XLA has compiled in this one.

    In a folder for this kind of CPU, as XLA compiles for its very instructions;
    JAX_COMPILATION_CACHE_DIR names another folder.
    """
    import jax

    if jax.config.values["jax_compilation_cache_dir"] is None:
        path = pathlib.Path("/proc/cpuinfo")
        lines = path.read_text().splitlines() if path.exists() else []
        about = [x for x in lines if x.startswith(("model name", "flags", "Features"))]
        identity = platform.machine() + "".join(sorted(set(about)))
        key = hashlib.sha256(identity.encode()).hexdigest()[:16]
        folder = cache_folder() / f"compiled-{key}"
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def silence_libraries() -> None:
    """Keep Orbax from logging, with tracebacks, what it raises as well."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)


def complain(program: str, error: Exception) -> None:
    """Say in one line what is wrong."""
    print(f"{program}: error: {error}", file=sys.stderr)
