"""Start train.py and leave after the first step: python -m benchmarks.first_step."""

import os
import sys
from typing import Any

import train
from train_jax.output.report import Report


def leave(*args: Any, **kwargs: Any) -> None:
    """End the process at once."""
    os._exit(0)


if __name__ == "__main__":
    Report.progress = leave
    sys.exit(train.main(sys.argv[1:]))
