"""Find the collective operations of a compiled program."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping

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
_CONDITION = re.compile(r" while\(.*condition=%?([\w.-]+)")
_CONSTANT = re.compile(r"%?([\w.-]+) = s32\[\]\S* constant\((\d+)\)")
_LESS = re.compile(r"compare\(.*?, (?:s32\[\]\S* )?%?([\w.-]+)\), direction=LT")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
# Of eight devices: [1,8]<=[8], {{0,1,2,3,4,5,6,7}} or mesh['a'=8,'b'=1] {'a'}.
_GROUPS = re.compile(
    r"replica_groups=(?:\[\d+,(?P<size>\d+)\]|\{\{(?P<members>[\d,]*)\}"
    r"|mesh\[(?P<mesh>[^]]*)\] \{(?P<axes>[^}]*)\})"
)


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
                found.append(_parse(match, times, computation=name))
            inner = times * _count_trips(line, bodies)
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


def _count_trips(line: str, bodies: Mapping[str, list[str]]) -> int:
    """Read how often a loop runs; 1 if that is not known, and for what is no loop."""
    if trips := _TRIPS.search(line):
        return int(trips[1])
    if not (condition := _CONDITION.search(line)):
        return 1
    lines = bodies.get(condition[1], [])
    constants = {m[1]: int(m[2]) for each in lines if (m := _CONSTANT.search(each))}
    # The index, from 0, is less than a constant.
    limits = [m[1] for each in lines if (m := _LESS.search(each))]
    return constants.get(limits[0], 1) if limits else 1


def _parse(match: re.Match[str], times: int, *, computation: str) -> Collective:
    """Parse an operation such as `= f32[8]{0} all-gather(f32[1] %x), …`."""
    group = _group_size(match["rest"])
    sizes = [_size(*array) for array in _ARRAY.findall(match["type"])]
    # One that is started apart returns its operand, too. A list is sent whole.
    size = max(sizes) if "-start(" in match[0] else sum(sizes)
    size *= group if match["kind"] == "reduce-scatter" else 1
    # A TPU's compiler writes a reduce-scatter as a computation of this name.
    is_scattered = computation.startswith("all-reduce-scatter")
    kind = "reduce-scatter" if is_scattered else match["kind"]
    return Collective(kind, size, group, times)


def _group_size(attributes: str) -> int:
    """Read how many devices take part in an operation together; 1 if it doesn't say."""
    groups = _GROUPS.search(attributes)
    if groups is None:
        return 1
    if groups["size"]:
        return int(groups["size"])
    if groups["members"] is not None:
        return groups["members"].count(",") + 1
    sizes = dict(axis.split("=") for axis in groups["mesh"].split(","))
    return math.prod(int(sizes[axis]) for axis in groups["axes"].split(","))


def _size(dtype: str, shape: str) -> int:
    """Compute the size of an array, bytes."""
    bits = re.search(r"\d+", dtype)
    item = _BYTES.get(dtype) or (int(bits[0]) // 8 if bits else 4)
    return item * math.prod(int(side) for side in shape.split(",") if side)
