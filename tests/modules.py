"""Random variables for a module, and its compiled application.

Outside jit XLA compiles every operation for every shape, initialisers even more slowly:
tests of many small models spend most of their time on it.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def normal(*shape: int, seed: int = 0) -> jax.Array:
    """Draw from the standard normal distribution, without compiling anything."""
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.standard_normal(shape, dtype=np.float32))


def shapes(module: nn.Module, *inputs: Any, **kwargs: Any) -> dict[str, Any]:
    """Compute the shapes of the variables without allocating any.

    Args:
        module: the module.
        *inputs: the arrays of the call, or the shape of one as numbers.
        **kwargs: further arguments of the call.
    """
    if all(isinstance(number, int) for number in inputs):
        inputs = (jax.ShapeDtypeStruct(inputs, jnp.float32),)
    init = functools.partial(module.init, **kwargs)
    return jax.eval_shape(init, jax.random.key(0), *inputs)


def variables(module: nn.Module, *inputs: Any) -> dict[str, Any]:
    """Draw random variables that differ from their initial values."""
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        x = rng.standard_normal(leaf.shape, dtype=np.float32)
        name = path[-1].key
        if name == "kernel":
            x /= np.sqrt(np.prod(leaf.shape[:-1]))
        elif name in ("scale", "var"):
            x = np.exp(0.2 * x)
        else:
            x *= 0.5
        return jnp.asarray(x, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes(module, *inputs))


def apply(
    module: nn.Module,
    variables: dict[str, Any],
    *args: Any,
    train: bool = False,
    mutable: tuple[str, ...] | bool = False,
    capture_intermediates: bool = False,
    **kwargs: Any,
) -> Any:
    """Call `module.apply` under jit; flags and strings are static."""
    static = {"mutable": mutable, "capture_intermediates": capture_intermediates}
    static |= {k: v for k, v in kwargs.items() if isinstance(v, bool | str)}
    arrays = {k: v for k, v in kwargs.items() if k not in static}
    compiled = _compiled(module, train=train, **static)
    return compiled(variables, *args, **arrays)


@functools.cache
def _compiled(module: nn.Module, **static: Any):
    return jax.jit(functools.partial(module.apply, **static))
