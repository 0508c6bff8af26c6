"""Count the floating-point operations of a traced function."""

import math
from typing import Any

import jax.extend.core


def count_flops(jaxpr: Any) -> int:
    """Count the operations of matrix products and convolutions; an addition is one.

    What a loop of known length does counts as often as it is done; a loop of unknown
    length counts once. Of a convolution with gaps between its inputs, as in the
    gradient of one with strides, the products with the gaps' zeros don't count.

    Args:
        jaxpr: of `jax.jit(function).trace(…)`, or one inside it.
    """
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            length = math.prod(shape[axis] for axis in contracted)
            total += 2 * eqn.outvars[0].aval.size * length
        elif eqn.primitive.name == "conv_general_dilated":
            kernel = eqn.invars[1].aval
            num_features = kernel.shape[eqn.params["dimension_numbers"].rhs_spec[0]]
            products = eqn.outvars[0].aval.size * kernel.size // num_features
            total += 2 * products // math.prod(eqn.params["lhs_dilation"])
        inner = [
            count_flops(each) for each in jax.extend.core.jaxprs_in_params(eqn.params)
        ]
        if eqn.primitive.name == "cond":
            total += max(inner)
        elif eqn.primitive.name == "scan":
            total += eqn.params["length"] * sum(inner)
        else:
            total += sum(inner)
    return total
