"""Write the reference of the config's fields as Markdown.

python -m train_jax.config.reference > docs/config.md
"""

import dataclasses
import inspect
import re
from collections.abc import Mapping

from train_jax.config.fields import SECTIONS, Config
from train_jax.config.models import MODELS
from train_jax.config.optimizer_fields import SHARED, GroupConfig
from train_jax.config.options import Option, options_of
from train_jax.config.signatures import model_options, optimizer_options, unwrap
from train_jax.learning.optim import OPTIMIZERS

_INTRODUCTION = """\
# Fields of a config

<!-- Written by `python -m train_jax.config.reference`; do not edit. -->

A config file defines `get_config()`, which returns an `ml_collections.ConfigDict` or a
dict with sections. What it leaves out has its default. On the command line,
`--config.SECTION.FIELD=VALUE` sets a field. `config.sweep.FIELD` gives several
values to a field that is marked (sweep): one run for each, all of them trained in one
program.
"""


def render() -> str:
    """Render sections, models and optimisers as one Markdown page."""
    parts = [_INTRODUCTION]
    for section, its_class in SECTIONS.items():
        parts.append(_section(f"`{section}`", its_class, prefix=f"{section}."))
        if section == "model":
            parts.append(_models())
        if section == "optimizer":
            parts += [
                f"### `optimizer.name = {name!r}`\n\n"
                + _table(optimizer_options(name), prefix="optimizer.")
                for name in OPTIMIZERS
            ]
            parts.append(
                _section("`groups.NAME`", GroupConfig, prefix="groups.NAME.")
                + "\nand the arguments of its optimiser, as above.\n"
            )
    parts.append(_section("Training", Config, prefix=""))
    return "\n".join(parts)


def _section(title: str, its_class: type, *, prefix: str) -> str:
    table = _table(options_of(its_class), prefix=prefix)
    return f"## {title}\n\n{inspect.getdoc(its_class)}\n\n{table}"


def _models() -> str:
    """Render the fields of each module, and the presets that are made from it."""
    modules: dict[object, list[str]] = {}
    for name in MODELS:
        modules.setdefault(unwrap(MODELS[name]), []).append(name)
    parts = []
    for base, *presets in modules.values():
        options = model_options(base)
        parts.append(f"### `model.name = {base!r}`\n\n{_table(options, 'model.')}")
        if presets:
            rows = [f"| has the fields of `{base}` | with |", "|---|---|"]
            for preset in presets:
                rows.append(f"| `{preset}` | {_changes(base, preset)} |")
            parts.append("\n".join([*rows, ""]))
    return "\n".join(parts)


def _changes(base: str, preset: str) -> str:
    """Name the module's fields that a preset sets, and another one does not so."""
    before = getattr(MODELS[base], "keywords", {})
    changes = [
        f"`{name}={getattr(value, '__name__', repr(value))}`"
        for name, value in getattr(MODELS[preset], "keywords", {}).items()
        if before.get(name) != value
    ]
    return ", ".join(changes)


def _table(options: Mapping[str, Option], prefix: str) -> str:
    lines = ["| field | default | allowed | meaning |", "|---|---|---|---|"]
    for name, option in options.items():
        is_required = option.default is dataclasses.MISSING
        default = "required" if is_required else f"`{option.default!r}`"
        is_group = prefix.startswith("groups.")
        if is_group and name in SHARED:
            default = "as in `optimizer`"
        is_swept = option.sweepable and not is_group
        mark = " (sweep)" if is_swept else ""
        cells = [f"`{prefix}{name}`{mark}", default, option.rule.allowed]
        cells.append(option.meaning)
        # A bar would end the cell.
        lines.append(f"| {' | '.join(re.sub(r'[|]', '&#124;', c) for c in cells)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    print(render(), end="")
