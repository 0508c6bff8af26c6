"""Define a field of the config: type, default, rule, meaning."""

import dataclasses
import difflib
from collections.abc import Iterable
from typing import Any

from train_jax.config.rules import Rule, rule_of


@dataclasses.dataclass(frozen=True)
class Option:
    """A row of the table.

    Attributes:
        default: the default; `dataclasses.MISSING` if the field has to be given.
        rule: what is allowed.
        meaning: one line.
        sweepable: whether `config.sweep` may give several values, as a compiled step
            takes it as an argument.
    """

    default: Any
    rule: Rule
    meaning: str
    sweepable: bool = False


def option(
    default: Any, meaning: str, rule: Rule | None = None, *, sweepable: bool = False
) -> Any:
    """Define a field; without a rule, it has that of its annotation."""
    metadata = {"meaning": meaning, "rule": rule, "sweepable": sweepable}
    return dataclasses.field(default=default, metadata=metadata)


def options_of(section: Any) -> dict[str, Option]:
    """List the options of a section's class: name → row of the table."""
    options = {}
    for field in dataclasses.fields(section):
        if field.metadata:
            row = dict(field.metadata)
            row["rule"] = row["rule"] or rule_of(field.name, field.type)
            options[field.name] = Option(field.default, **row)
    return options


def closest(field: str, known: Iterable[str]) -> str | None:
    """Find the known name that is most like a mistyped one, if there is one.

    Of dotted fields, one of the same section is taken first.
    """
    section, _, key = field.rpartition(".")
    fields = list(known)
    siblings = [name for name in fields if name.rpartition(".")[0] == section]
    for candidates, cutoff in ((siblings, 0.7), (fields, 0.8)):
        names = {name.rpartition(".")[2]: name for name in candidates}
        if close := difflib.get_close_matches(key, names, n=1, cutoff=cutoff):
            return names[close[0]]
    return None
