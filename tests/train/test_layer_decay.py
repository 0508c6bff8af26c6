"""Layer-wise decay of the learning rate."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resnet_jax import ResNet
from tests import modules
from tests.train.tiny import RESNET, make_tiny
from train_jax.learning import optim
from train_jax.learning.layer_decay import layer_factors, scale_by_layer
from vit_jax import ViT

FIELDS = {"patch_size": 4, "width": 8, "depth": 3, "num_heads": 2, "num_registers": 1}


def _params(**fields):
    module = ViT(5, **FIELDS, **fields)
    return modules.variables(module, 1, 8, 8, 1)["params"]


def test_each_layer_has_the_factor_of_its_height():
    factors = layer_factors(_params(), decay=0.5)
    flat = {
        jax.tree_util.keystr(path, simple=True, separator="/"): float(value)
        for path, value in jax.tree_util.tree_leaves_with_path(factors)
    }
    expected = {
        **dict.fromkeys(("cls", "pos_embedding", "registers", "embedding/"), 1 / 16),
        "encoder/block_0/": 1 / 8,
        "encoder/block_1/": 1 / 4,
        "encoder/block_2/": 1 / 2,
        **dict.fromkeys(("encoder/norm/", "head/"), 1.0),
    }
    assert {
        (name, factor)
        for path, factor in flat.items()
        for name in expected
        if path.startswith(name)
    } == set(expected.items())
    assert all(path.startswith(tuple(expected)) for path in flat)


def test_blocks_that_are_scanned_have_the_same_factors():
    scanned = layer_factors(_params(scan=True), decay=0.5)["encoder"]["blocks"]
    for leaf in jax.tree.leaves(scanned):
        np.testing.assert_allclose(jnp.ravel(leaf), [1 / 8, 1 / 4, 1 / 2])


def test_the_update_is_scaled_and_the_rate_is_that_of_the_head():
    params = _params()
    rule = optim.make_update_rule(
        "sgd", optax.constant_schedule(1.0), learning_rate=0.1
    )
    plain, decayed = (
        optim.make_optimizer(rule, layer_decay=decay) for decay in (None, 0.5)
    )
    updates, _ = plain.update(params, plain.init(params), params)
    expected = jax.tree.map(jnp.multiply, updates, layer_factors(params, decay=0.5))
    updates, state = decayed.update(params, decayed.init(params), params)
    jax.tree.map(np.testing.assert_allclose, updates, expected)
    np.testing.assert_allclose(optim.last_learning_rate(state), 0.1)


def test_a_model_without_blocks_is_refused():
    params = modules.variables(ResNet(5, stage_sizes=(1,)), 1, 8, 8, 1)["params"]
    with pytest.raises(ValueError, match="layer_decay needs a ViT"):
        scale_by_layer(0.5).init(params)
    with pytest.raises(ValueError, match="layer_decay needs a ViT"):
        make_tiny(RESNET | {"optimizer.layer_decay": 0.5})
    with pytest.raises(ValueError, match="layer_decay must be None where"):
        make_tiny(
            {
                "optimizer.layer_decay": 0.5,
                "optimizer.name": "muon",
                "optimizer.keep_norm": True,
            }
        )
