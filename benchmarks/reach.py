"""Run train.py; fail if the run falls short: python -m benchmarks.reach 0.977 …"""

import json
import pathlib
import sys

import train


def main(accuracy: float, arguments: list[str]) -> int:
    """Run train.py and look at its summary."""
    code = train.main(arguments)
    workdir = pathlib.Path(arguments[arguments.index("--workdir") + 1])
    reached = json.loads((workdir / "summary.json").read_text(encoding="utf-8"))[
        "test_accuracy"
    ]
    print(f"reached {reached:.2%}")
    return code or int(reached < accuracy)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
