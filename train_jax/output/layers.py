"""Print the table of a model's layers: name, kind, output shape, parameters."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import rich.console
import rich.table

from train_jax.learning.state import count_parameters
from vit_jax import Decoder, Encoder, Transformer

# Of these, the parts are listed.
_STACKS = (Transformer, Encoder, Decoder)


class LayerRow(NamedTuple):
    """One line of the table."""

    name: str
    kind: str
    output_shape: tuple[int, ...]
    num_params: int


def list_layers(
    model: nn.Module, variables: Any, inputs: Sequence[jax.Array]
) -> list[LayerRow]:
    """List a model's layers; nothing is computed, the forward pass is abstract."""
    params = variables["params"]
    rows: dict[str, LayerRow] = {}
    stacks = {()}

    def record(next_fun, args, kwargs, context):
        path, module = context.module.path, context.module
        if isinstance(module, _STACKS):
            stacks.add(path)
        output = next_fun(*args, **kwargs)
        is_layer = path and path[:-1] in stacks and path not in stacks
        if is_layer and context.method_name == "__call__":
            # Of all blocks, where they are scanned.
            own = functools.reduce(lambda x, k: x.get(k, {}), path, params)
            name, kind = "/".join(path), type(module).__name__
            row = LayerRow(name, kind, output.shape, count_parameters(own))
            rows.setdefault(name, row)
        return output

    with nn.intercept_methods(record):
        jax.eval_shape(functools.partial(model.apply, train=False), variables, *inputs)
    alone = [
        LayerRow(name, "parameter", leaf.shape, count_parameters(leaf))
        for name, leaf in params.items()
        if not isinstance(leaf, Mapping)
    ]
    return alone + [row for row in rows.values() if row.num_params]


def print_layers(model: nn.Module, inputs: Sequence[jax.Array]) -> None:
    """Print the table of a model's layers.

    Args:
        model: the module.
        inputs: what it is called with; only shapes and dtypes matter.
    """
    init = functools.partial(model.init, train=False)
    variables: Any = jax.eval_shape(init, jax.random.key(0), *inputs)
    table = rich.table.Table("layer", "kind", "output shape")
    table.add_column("parameters", justify="right")
    for row in list_layers(model, variables, inputs):
        shape = " × ".join(map(str, row.output_shape))
        table.add_row(row.name, row.kind, shape, f"{row.num_params:,}")
    table.add_section()
    table.add_row("total", "", "", f"{count_parameters(variables['params']):,}")
    rich.console.Console().print(table)
