"""Products of float32 matrices that are rounded to bfloat16."""

import functools

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

from tests import modules
from tests.modules import normal
from vit_jax import ViT, bfloat16
from vit_jax.layers import merged_dot_general

# Dimension numbers, and the shapes of the factors.
PRODUCTS = {
    "matrices": ((((1,), (0,)), ((), ())), (5, 3), (3, 4)),
    "wide left-hand side": ((((1,), (0,)), ((), ())), (64, 40), (40, 8)),
    "one row": ((((1,), (0,)), ((), ())), (1, 3), (3, 4)),
    "one number": ((((1,), (0,)), ((), ())), (1, 1), (1, 1)),
    "queries and keys": ((((2,), (2,)), ((0,), (0,))), (6, 5, 4), (6, 7, 4)),
    "weights and values": ((((2,), (1,)), ((0,), (0,))), (6, 5, 7), (6, 7, 4)),
}


def _round(x):
    return jnp.asarray(x).astype(jnp.bfloat16).astype(jnp.float32)


@pytest.mark.parametrize("name", PRODUCTS)
def test_it_is_the_product_of_rounded_factors(name):
    numbers, *shapes = PRODUCTS[name]
    lhs, rhs = normal(*shapes[0]), normal(*shapes[1], seed=1)
    exact = functools.partial(jax.lax.dot_general, dimension_numbers=numbers)
    expected, exact_vjp = jax.vjp(exact, _round(lhs), _round(rhs))
    out, vjp = jax.vjp(
        jax.jit(lambda *xs: bfloat16.dot_general(*xs, numbers)), lhs, rhs
    )
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    cotangent = normal(*out.shape, seed=2)
    # So are those of the gradient; rounding makes a difference.
    for actual, rounded in zip(
        vjp(cotangent), exact_vjp(_round(cotangent)), strict=True
    ):
        np.testing.assert_allclose(actual, rounded, rtol=1e-5, atol=1e-5)
    if lhs.size > 1:
        assert not np.allclose(out, exact(lhs, rhs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", PRODUCTS)
def test_the_sum_is_over_the_last_axis_of_the_left_hand_side(name):
    """Otherwise XLA multiplies in float32."""
    numbers, *shapes = PRODUCTS[name]

    def total(*factors):
        return jnp.square(bfloat16.dot_general(*factors, numbers)).sum()

    gradient = jax.grad(total, (0, 1))
    program = jax.make_jaxpr(gradient)(*(normal(*shape) for shape in shapes)).jaxpr
    products = list(_find_products(program))
    assert len(products) == 3
    for product in products:
        (lhs_sum, _), _ = product.params["dimension_numbers"]
        assert lhs_sum == (product.invars[0].aval.ndim - 1,)


def _find_products(jaxpr):
    for equation in jaxpr.eqns:
        if equation.primitive is jax.lax.dot_general_p:
            yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from _find_products(inner)


def test_other_dtypes_are_multiplied_as_they_are():
    numbers, *shapes = PRODUCTS["matrices"]
    lhs, rhs = (normal(*shape).astype(jnp.bfloat16) for shape in shapes)
    out = bfloat16.dot_general(lhs, rhs, numbers)
    np.testing.assert_array_equal(out, jax.lax.dot_general(lhs, rhs, numbers))
    assert out.dtype == jnp.bfloat16
    numbers, *shapes = PRODUCTS["queries and keys"]
    factors = [normal(*shape) for shape in shapes]
    out = bfloat16.dot_general(*factors, numbers, preferred_element_type=jnp.float16)
    assert out.dtype == jnp.float16


@pytest.mark.parametrize("num_runs", [1, 3])
def test_a_vit_trains_with_it_as_in_float32(num_runs):
    image_BHWC = normal(4, 8, 8, 3)
    fields = {"patch_size": 4, "width": 16, "depth": 2, "num_heads": 2}
    model = ViT(5, **fields)
    params = modules.variables(model, *image_BHWC.shape)["params"]

    def gradient(model):
        def loss(params):
            return jnp.square(model.apply({"params": params}, image_BHWC)).mean()

        gradients = jax.jit(jax.vmap(jax.grad(loss)))
        return gradients(jax.tree.map(lambda p: jnp.stack([p] * num_runs), params))

    expected = gradient(model)
    actual = gradient(model.clone(dot_general=bfloat16.dot_general))
    flat = [
        jnp.concatenate([x.ravel() for x in jax.tree.leaves(t)])
        for t in (actual, expected)
    ]
    error = jnp.linalg.norm(flat[0] - flat[1]) / jnp.linalg.norm(flat[1])
    assert 1e-5 < error < 0.02


def test_a_dense_layer_takes_it():
    x_BTD, kernel_DF = normal(2, 3, 4), normal(4, 5)
    numbers = (((2,), (0,)), ((), ()))
    out_BTF = merged_dot_general(
        x_BTD, kernel_DF, numbers, dot_general=bfloat16.dot_general
    )
    expected = _round(x_BTD) @ _round(kernel_DF)
    np.testing.assert_allclose(out_BTF, expected, rtol=1e-5, atol=1e-5)
