"""List the config's fields for `--help`."""

import dataclasses
import inspect
import textwrap
from collections.abc import Mapping

from train_jax.config.fields import SECTIONS, TABLE, Config
from train_jax.config.files import bundled_configs
from train_jax.config.optimizer_fields import SHARED, GroupConfig
from train_jax.config.options import Option, options_of

_HINT = """\
Further fields belong to the model and to the optimiser; to list those of one:
  --help --config.model.name=vit
  --help --config.optimizer.name=sgd"""


def describe_config(overrides: Mapping[str, str]) -> str:
    """List every field with its default, what is allowed, and what it means.

    Args:
        overrides: dotted field → value on the command line. A model and an optimiser
            that are named there have their own fields listed, which imports JAX.
    """
    names = f"bundled configs: {', '.join(bundled_configs())}"
    parts = [textwrap.fill(names, 88, subsequent_indent="  "), _HINT]
    groups = ("groups.NAME", GroupConfig)
    for section, its_class in [*SECTIONS.items(), groups, ("", Config)]:
        options = options_of(its_class) | _arguments(section, overrides)
        rows = [_row(f"{section}.{k}".lstrip("."), row) for k, row in options.items()]
        parts.append("\n".join([str(inspect.getdoc(its_class)), *rows]))
    return "\n\n".join(parts)


def _arguments(section: str, overrides: Mapping[str, str]) -> dict[str, Option]:
    """List the fields of the model, or of the optimiser, that is named."""
    field = f"{section}.name"
    if section not in ("model", "optimizer") or field not in overrides:
        return {}
    name = overrides[field]
    if not TABLE[field].rule.passes(name):
        return {}
    from train_jax.config import signatures

    list_options = {
        "model": signatures.model_options,
        "optimizer": signatures.optimizer_options,
    }
    return list_options[section](name)


def _row(field: str, option: Option) -> str:
    """Write a field in two lines or more."""
    is_required = option.default is dataclasses.MISSING
    default = "required" if is_required else f"default {option.default!r}"
    group, _, name = field.rpartition(".")
    if group.startswith("groups.") and name in SHARED:
        default = "default: as in optimizer"
    text = f"{option.meaning} ({option.rule.allowed}; {default})"
    indent = 6 * " "
    words = textwrap.fill(text, 88, initial_indent=indent, subsequent_indent=indent)
    return f"  --config.{field}\n{words}"
