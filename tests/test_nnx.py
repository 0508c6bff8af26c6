"""The models work in Flax NNX, through `flax.nnx.bridge.ToNNX`."""

import chex
import jax
import numpy as np
import pytest
from flax import nnx

from resnet_jax import ResNet
from tests.modules import normal
from vit_jax import ViT

MODELS = {
    "vit": ViT(3, patch_size=4, width=8, depth=1, num_heads=2),
    "resnet": ResNet(3, stage_sizes=(1, 1), width=2),
}
IMAGE_BHWC = normal(2, 8, 8, 3)


def _variables(model: nnx.Module) -> dict:
    """Collect the variables as Linen has them."""
    _, params, batch_stats, _ = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    tree = {"params": params, "batch_stats": batch_stats}
    return {name: nnx.to_pure_dict(state) for name, state in tree.items() if state}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_in_nnx_equals_that_in_linen(name):
    linen = MODELS[name]
    model = nnx.bridge.ToNNX(linen, rngs=nnx.Rngs(0)).lazy_init(IMAGE_BHWC)
    variables = _variables(model)
    expected = jax.eval_shape(linen.init, jax.random.key(0), IMAGE_BHWC)
    chex.assert_trees_all_equal_shapes_and_dtypes(variables, expected)

    logits_BY = linen.apply(variables, IMAGE_BHWC)
    np.testing.assert_allclose(model(IMAGE_BHWC), logits_BY, atol=1e-6)

    def loss(params):
        out_BY = linen.apply(variables | {"params": params}, IMAGE_BHWC)
        return (out_BY**2).sum()

    gradient = nnx.jit(nnx.grad(lambda model: (model(IMAGE_BHWC) ** 2).sum()))(model)
    expected = jax.jit(jax.grad(loss))(variables["params"])
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(expected["head"]))
    chex.assert_trees_all_close(nnx.to_pure_dict(gradient), expected, atol=1e-5)


def test_batch_norm_in_nnx_updates_its_statistics():
    linen = MODELS["resnet"]
    model = nnx.bridge.ToNNX(linen, rngs=nnx.Rngs(0)).lazy_init(IMAGE_BHWC)
    how = {"train": True, "mutable": ["batch_stats"]}
    _, expected = linen.apply(_variables(model), IMAGE_BHWC, **how)
    model(IMAGE_BHWC, **how)
    chex.assert_trees_all_close(
        _variables(model)["batch_stats"], expected["batch_stats"], atol=1e-6
    )
