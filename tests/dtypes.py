"""Check that float64 computations stay in float64."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_FLOAT64 = np.dtype(np.float64)


def assert_smooth(function: Callable[[Any], jax.Array], tree: Any) -> None:
    """Compare the gradient with finite differences that only float64 resolves.

    Args:
        function: computes float64 from the tree.
        tree: float64, random, so that no value is at a kink.
    """
    rng = np.random.default_rng(5)

    def draw(x: jax.Array) -> jax.Array:
        return jnp.asarray(rng.standard_normal(x.shape))

    direction, step = jax.tree.map(draw, tree), 1e-6
    weight = draw(jax.eval_shape(function, tree))

    @jax.jit
    def loss(step, tree, direction):
        moved = jax.tree.map(lambda x, d: x + step * d, tree, direction)
        return (function(moved) * weight).sum()

    high, low = (loss(h, tree, direction) for h in (step, -step))
    slope = jax.jit(jax.grad(loss))(0.0, tree, direction)
    np.testing.assert_allclose((high - low) / (2 * step), slope, rtol=1e-5)


def roundings(function: Callable, *args: Any) -> tuple[list[str], Any]:
    """List the operations that take float64 and return something narrower.

    Returns:
        These, and the shapes and dtypes of what the function returns.
    """
    program, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    found = [
        str(equation)
        for equation in _equations(program.jaxpr)
        if _FLOAT64 in _float_dtypes(equation.invars)
        and _float_dtypes(equation.outvars) - {_FLOAT64}
    ]
    return found, shapes


def _float_dtypes(variables: Any) -> set[np.dtype]:
    dtypes = {x.aval.dtype for x in variables if hasattr(x.aval, "dtype")}
    return {d for d in dtypes if jax.dtypes.issubdtype(d, np.floating)}


def _equations(jaxpr: Any) -> Iterator[Any]:
    """Yield the operations that contain no others, those of a loop's body included."""
    for equation in jaxpr.eqns:
        inner = [
            getattr(x, "jaxpr", x)
            for parameter in equation.params.values()
            for x in (parameter if isinstance(parameter, tuple | list) else [parameter])
        ]
        inner = [x for x in inner if hasattr(x, "eqns")]
        for program in inner:
            yield from _equations(program)
        if not inner:
            yield equation
