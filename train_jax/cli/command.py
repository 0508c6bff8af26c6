"""Run a command: one line for a mistake, and its exit code."""

import argparse
import signal
import sys
from collections.abc import Callable

import jax

from train_jax.cli import console
from train_jax.devices import compiler, processes


def run(
    parser: argparse.ArgumentParser,
    command: Callable[[argparse.Namespace], int],
    arguments: list[str],
) -> int:
    """Run a command that uses a trained model, and return its exit code.

    Args:
        parser: of its command line.
        command: takes the options, and returns the exit code; what it raises as OSError
            or ValueError is the user's mistake, printed in one line.
        arguments: the command line.
    """
    try:
        console.prepare_output()
        options = parser.parse_args(arguments)
        console.silence_libraries()
        processes.check_devices()
        compiler.enable_compilation_cache()
        return command(options)
    except KeyboardInterrupt:
        print(f"{parser.prog}: stopped", file=sys.stderr)
        return 128 + signal.SIGINT
    except (OSError, ValueError) as error:
        console.print_error(parser.prog, error)
        return 2
    except MemoryError as error:
        reason = str(error) or "memory ran out"
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = "the device has too little memory"
    console.print_error(parser.prog, MemoryError(reason))
    return console.FAILED
