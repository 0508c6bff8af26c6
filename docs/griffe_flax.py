"""Read the model packages as mkdocstrings needs them: examples, and fields of modules.

An extension of Griffe, which reads the source without importing it.
"""

import re
from collections.abc import Iterator
from typing import Any

import griffe

# An example ends with an empty line.
_EXAMPLE = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)


class FlaxModules(griffe.Extension):
    """Show examples as code, and the fields of a Flax module as its arguments."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Fence the examples of a docstring: Markdown takes `>>>` for a quotation."""
        if obj.docstring is not None:
            fenced = r"```pycon\n\g<0>\n```"
            obj.docstring.value = _EXAMPLE.sub(fenced, obj.docstring.value)

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Give every Flax module the `__init__` that `dataclasses` makes for it."""
        for cls in _classes(pkg):
            family = [*reversed(cls.mro()), cls]
            if any(str(base) == "nn.Module" for each in family for base in each.bases):
                arguments = {p.name: p for each in family for p in _fields(each)}
                init = griffe.Function(
                    "__init__", parameters=griffe.Parameters(*arguments.values())
                )
                cls.set_member("__init__", init)


def _classes(scope: griffe.Module) -> Iterator[griffe.Class]:
    """List the classes that a package defines."""
    yield from (cls for cls in scope.classes.values() if not cls.is_alias)
    for module in scope.modules.values():
        if not module.is_alias:
            yield from _classes(module)


def _fields(cls: griffe.Class) -> Iterator[griffe.Parameter]:
    """List the fields that a class itself declares."""
    is_keyword = str(cls.keywords.get("kw_only")) == "True"
    kinds = griffe.ParameterKind
    for name, attribute in cls.attributes.items():
        if attribute.annotation is not None:
            yield griffe.Parameter(
                name,
                annotation=attribute.annotation,
                kind=kinds.keyword_only if is_keyword else kinds.positional_or_keyword,
                default=attribute.value,
            )
