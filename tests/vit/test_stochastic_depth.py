"""Stochastic depth and LayerScale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.modules import normal
from vit_jax import Encoder
from vit_jax.layers import stochastic_depth

KEY = jax.random.key(0)
X_BTD = normal(64, 3, 8)
FIELDS = {"num_heads": 2, "mlp_dim": 16, "final_norm": False}


def _encode(x_BTD, *, train=True, **fields):
    encoder = Encoder(**FIELDS, **fields)
    variables = jax.jit(encoder.init)(KEY, x_BTD)
    rngs = {"dropout": jax.random.key(1)}
    return jax.jit(lambda v: encoder.apply(v, x_BTD, train=train, rngs=rngs))(variables)


def test_examples_are_left_out_whole_and_the_others_scaled():
    out_BTD = np.asarray(stochastic_depth(KEY, X_BTD, 0.25))
    is_kept_B = out_BTD.any(axis=(1, 2))
    np.testing.assert_allclose(
        out_BTD[is_kept_B], np.asarray(X_BTD)[is_kept_B] / 0.75, rtol=1e-6
    )
    keys = jax.random.split(KEY, 200)
    ones_BTD = jnp.ones((64, 1, 1))
    mean = jax.vmap(lambda key: stochastic_depth(key, ones_BTD, 0.25))(keys).mean()
    assert abs(mean - 1) < 0.02


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5])
def test_rates_out_of_range(rate):
    with pytest.raises(ValueError, match=rf"rate must be in \[0, 1\), got {rate}"):
        stochastic_depth(KEY, X_BTD, rate)


def test_without_residual_there_would_be_nothing_left():
    with pytest.raises(ValueError, match="stochastic_depth_rate must be 0 without"):
        _encode(X_BTD, depth=1, residual=False, stochastic_depth_rate=0.1)


@pytest.mark.parametrize("scan", [False, True])
def test_the_rate_grows_from_none_to_that_of_the_last_block(scan):
    full = _encode(X_BTD, depth=2, scan=scan)
    dropped = _encode(X_BTD, depth=2, scan=scan, stochastic_depth_rate=0.9)
    first = _encode(X_BTD, depth=1, stochastic_depth_rate=0.9)
    # One block has the rate 0.
    np.testing.assert_array_equal(first, _encode(X_BTD, depth=1))
    assert not np.allclose(full, dropped)
    unchanged = _encode(X_BTD, train=False, depth=2, scan=scan)
    evaluated = _encode(
        X_BTD, train=False, depth=2, scan=scan, stochastic_depth_rate=0.9
    )
    np.testing.assert_array_equal(evaluated, unchanged)
    if not scan:
        # Where both sublayers of the second block are left out, the first one's output
        # remains; that is so in four of five examples.
        remains_B = np.isclose(dropped, first, atol=1e-6).all(axis=(1, 2))
        assert 0.6 < remains_B.mean() < 0.95


def test_layer_scale_multiplies_what_a_sublayer_adds():
    np.testing.assert_array_equal(_encode(X_BTD, depth=2, layer_scale=0.0), X_BTD)
    np.testing.assert_allclose(
        _encode(X_BTD, depth=2, layer_scale=1.0), _encode(X_BTD, depth=2), rtol=1e-5
    )
    small = _encode(X_BTD, depth=1, layer_scale=1e-3) - X_BTD
    large = _encode(X_BTD, depth=1, layer_scale=2e-3) - X_BTD
    np.testing.assert_allclose(large, 2 * small, rtol=0.1, atol=1e-5)
