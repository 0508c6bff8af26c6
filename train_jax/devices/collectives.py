"""Find the collective operations of a compiled program."""

import dataclasses
import math
import re
from collections.abc import Iterable

KINDS = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all"),
    "collective-permute",
)
_BYTES = {"pred": 1, "c64": 8, "c128": 16}

_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")
_OPERATION = re.compile(
    rf"= (?P<type>.*?) (?P<kind>{'|'.join(KINDS)})(-start)?\((?P<rest>.*)"
)
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_GROUPS = re.compile(r"replica_groups=(?:\[\d+,(\d+)\]|\{\{([\d,]*)\})")


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective operation in a program.

    Attributes:
        kind: one of `KINDS`.
        size: of the whole array, before it is scattered or after it is gathered, bytes.
        group: number of devices that take part together.
        times: how often it runs; a loop of unknown length counts once.
    """

    kind: str
    size: int
    group: int
    times: int

    @property
    def sent(self) -> float:
        """Bytes that each device sends, if they pass the array around a ring."""
        rounds = 2 if self.kind == "all-reduce" else 1
        share = 1 if self.kind == "collective-permute" else 1 - 1 / self.group
        return self.times * rounds * share * self.size


def find_collectives(text: str) -> list[Collective]:
    """Find the collectives of a compiled program.

    Args:
        text: of the program, `Compiled.as_text()`.
    """
    bodies, entry = _split(text.splitlines())
    found: list[Collective] = []

    def walk(name: str, times: int) -> None:
        for line in bodies.get(name, ()):
            match = _OPERATION.search(line)
            if match:
                found.append(_parse(match, times))
            trips = _TRIPS.search(line)
            inner = times * int(trips[1]) if trips else times
            called = _CALLED.findall(line)
            for branches in _BRANCHES.findall(line):
                called += [branch.strip(" %") for branch in branches.split(",")]
            for each in called:
                walk(each, inner)

    walk(entry, 1)
    return found


def _split(lines: Iterable[str]) -> tuple[dict[str, list[str]], str]:
    """Split the text of a program into its computations; name the first to run."""
    bodies: dict[str, list[str]] = {}
    name = entry = ""
    for line in lines:
        match = None if line.startswith(" ") else _COMPUTATION.match(line)
        if match:
            name = match[2]
            bodies[name] = []
            entry = name if match[1] else entry
        elif name:
            bodies[name].append(line)
    return bodies, entry


def _parse(match: re.Match[str], times: int) -> Collective:
    """Parse an operation such as `= f32[8]{0} all-gather(f32[1] %x), …`."""
    groups = _GROUPS.search(match["rest"])
    group = 1
    if groups:
        group = int(groups[1] or groups[2].count(",") + 1)
    sizes = [_size(*array) for array in _ARRAY.findall(match["type"])]
    # One that is started apart returns its operand, too. A list of arrays is sent whole.
    size = max(sizes) if "-start(" in match[0] else sum(sizes)
    size *= group if match["kind"] == "reduce-scatter" else 1
    return Collective(match["kind"], size, group, times)


def _size(dtype: str, shape: str) -> int:
    """Compute the size of an array, bytes."""
    bits = re.search(r"\d+", dtype)
    item = _BYTES.get(dtype) or (int(bits[0]) // 8 if bits else 4)
    return item * math.prod(int(side) for side in shape.split(",") if side)
