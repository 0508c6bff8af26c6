"""Grad-CAM: as automatic differentiation of the logit gives it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import BottleneckBlock, ResNet
from resnet_jax.interpret import grad_cam

IMAGE = jax.random.normal(jax.random.key(0), (3, 16, 12, 3))
LABEL = jnp.array([2, 0, 4])


@pytest.mark.parametrize("fields", [{}, {"block": BottleneckBlock}])
def test_grad_cam_is_that_of_the_paper(fields):
    """Equations 1 and 2, with the gradient by autodiff through a perturbed map."""
    model = ResNet(5, stage_sizes=(1, 2), width=4, **fields)
    variables = model.init(jax.random.key(1), IMAGE)
    _, captured = model.apply(
        variables, IMAGE, capture_intermediates=True, mutable="intermediates"
    )
    (feature_BHWF,) = captured["intermediates"]["stage2_block2"]["__call__"]
    head = variables["params"]["head"]

    def logit(feature_BHWF):
        logits_BY = feature_BHWF.mean(axis=(1, 2)) @ head["kernel"] + head["bias"][None]
        return logits_BY[jnp.arange(3), LABEL].sum()

    np.testing.assert_allclose(
        feature_BHWF.mean(axis=(1, 2)) @ head["kernel"] + head["bias"][None],
        model.apply(variables, IMAGE),
        atol=1e-5,
    )
    alpha_BF = jax.grad(logit)(feature_BHWF).mean(axis=(1, 2))
    expected = jax.nn.relu((alpha_BF[:, None, None] * feature_BHWF).sum(axis=-1))
    actual = grad_cam(model, variables, IMAGE, LABEL)
    assert expected.max() > 0
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_a_model_without_a_head_is_refused():
    model = ResNet(None, stage_sizes=(1,), width=4)
    variables = model.init(jax.random.key(1), IMAGE)
    with pytest.raises(ValueError, match="num_classes must not be None"):
        grad_cam(model, variables, IMAGE, LABEL)


def test_a_class_that_there_is_not_lies_nowhere():
    model = ResNet(5, stage_sizes=(1,), width=4)
    variables = model.init(jax.random.key(1), IMAGE)
    for label in (5, -1):
        label_B = jnp.full(3, label)
        assert not grad_cam(model, variables, IMAGE, label_B).any()
    host = jax.tree.map(np.asarray, {"intermediates": {}, **variables})
    assert grad_cam(model, host, IMAGE, LABEL).shape == (3, 16, 12)
    with pytest.raises(AssertionError):
        grad_cam(model, variables, IMAGE, LABEL.astype(jnp.float32))
