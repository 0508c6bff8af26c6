"""Attention weights captured from a normal forward pass."""

import jax
import numpy as np

from resnet_jax import ResNet
from tests import modules
from vit_jax import ViT
from vit_jax.interpret import attention_weights

IMAGE_BHWC = modules.normal(2, 8, 8, 1)
DEPTH = 11  # so that the layers' names sort otherwise than their numbers


def test_every_layer_in_order_with_rows_that_sum_to_one():
    model = ViT(3, patch_size=4, width=4, depth=DEPTH, num_heads=2)
    variables = modules.variables(model, *IMAGE_BHWC.shape)
    capture = jax.jit(lambda v, x: attention_weights(model, v, x))
    layers = capture(variables, IMAGE_BHWC)
    assert [layer.shape for layer in layers] == [(2, 2, 5, 5)] * DEPTH
    np.testing.assert_allclose(np.stack(layers).sum(axis=-1), 1, atol=1e-6)

    # The weights of a layer depend on the layers before it, and on no later one.
    encoder = dict(variables["params"]["encoder"])
    name = f"block_{DEPTH - 2}"
    encoder[name] = jax.tree.map(lambda x: 2 * x, encoder[name])
    changed = {"params": variables["params"] | {"encoder": encoder}}
    others = capture(changed, IMAGE_BHWC)
    same = [np.array_equal(a, b) for a, b in zip(layers, others, strict=True)]
    assert same == [True] * (DEPTH - 2) + [False, False]


def test_a_model_without_attention_has_none():
    model = ResNet(3, stage_sizes=(1,), width=2)
    variables = modules.variables(model, *IMAGE_BHWC.shape)
    assert attention_weights(model, variables, IMAGE_BHWC) == []
