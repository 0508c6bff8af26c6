"""Train; fail below a test accuracy: python -m benchmarks.reach 0.977 --config …"""

import json
import pathlib
import sys

from train_jax import train


def main(accuracy: float, arguments: list[str]) -> int:
    """Train, and compare the summary's test accuracy."""
    code = train.main(arguments)
    if code:
        return code
    workdir = pathlib.Path(arguments[arguments.index("--workdir") + 1])
    summary = json.loads((workdir / "summary.json").read_text(encoding="utf-8"))
    return int(summary["test_accuracy"] < accuracy)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
