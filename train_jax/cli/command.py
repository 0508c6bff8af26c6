"""Run a command: one line for a mistake, and its exit code."""

import signal
import sys
from collections.abc import Callable

from train_jax.cli import arguments as cli


def run(program: str, command: Callable[[], int]) -> int:
    """Run a command that uses a trained model, and return its exit code.

    Args:
        program: how it is called, for messages.
        command: does what the command does, and returns its exit code; what it raises
            as OSError or ValueError is the user's mistake, printed in one line.
    """
    from train_jax.devices import compiler, processes

    try:
        cli.prepare_output()
        cli.silence_libraries()
        processes.check_devices()
        compiler.enable_compilation_cache()
        return command()
    except KeyboardInterrupt:
        print(f"{program}: stopped", file=sys.stderr)
        return 128 + signal.SIGINT
    except (OSError, ValueError) as error:
        cli.print_error(program, error)
        return 2
