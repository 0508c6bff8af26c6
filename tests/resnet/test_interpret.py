"""Grad-CAM: as automatic differentiation of the logit gives it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import BottleneckBlock, ResNet
from resnet_jax.interpret import grad_cam
from tests import modules
from tests.modules import apply, normal

IMAGE = normal(3, 16, 12, 3)
LABEL = jnp.array([2, 0, 4])

_compiled_grad_cam = jax.jit(grad_cam, static_argnums=0)


@pytest.mark.parametrize("fields", [{}, {"block": BottleneckBlock}])
def test_grad_cam_is_that_of_the_paper(fields):
    """Equations 1 and 2, with the gradient by autodiff through a perturbed map."""
    model = ResNet(5, stage_sizes=(1, 2), width=4, **fields)
    variables = modules.variables(model, *IMAGE.shape)
    captured_BY, captured = apply(
        model,
        variables,
        IMAGE,
        capture_intermediates=True,
        mutable=("intermediates",),
    )
    (feature_BHWF,) = captured["intermediates"]["stage2_block2"]["__call__"]
    head = variables["params"]["head"]

    def logit(feature_BHWF):
        logits_BY = feature_BHWF.mean(axis=(1, 2)) @ head["kernel"] + head["bias"][None]
        return logits_BY[jnp.arange(3), LABEL].sum(), logits_BY

    @jax.jit
    def explain(feature_BHWF):
        gradient, logits_BY = jax.grad(logit, has_aux=True)(feature_BHWF)
        alpha_BF = gradient.mean(axis=(1, 2))
        map_BHW = (alpha_BF[:, None, None] * feature_BHWF).sum(axis=-1)
        return jax.nn.relu(map_BHW), logits_BY

    expected, logits_BY = explain(feature_BHWF)
    np.testing.assert_allclose(logits_BY, captured_BY, atol=1e-5)
    actual = _compiled_grad_cam(model, variables, IMAGE, LABEL)
    assert expected.max() > 0
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_a_model_without_a_head_is_refused():
    model = ResNet(None, stage_sizes=(1,), width=4)
    variables = modules.variables(model, *IMAGE.shape)
    with pytest.raises(ValueError, match="grad_cam needs a model with a head"):
        grad_cam(model, variables, IMAGE, LABEL)


def test_a_class_that_there_is_not_lies_nowhere():
    model = ResNet(5, stage_sizes=(1,), width=4)
    variables = modules.variables(model, *IMAGE.shape)
    for label in (5, -1):
        label_B = jnp.full(3, label)
        assert not _compiled_grad_cam(model, variables, IMAGE, label_B).any()
    host = jax.tree.map(np.asarray, {"intermediates": {}, **variables})
    maps = jax.eval_shape(lambda: grad_cam(model, host, IMAGE, LABEL))
    assert maps.shape == (3, 16, 12)
    with pytest.raises(AssertionError):
        grad_cam(model, variables, IMAGE, LABEL.astype(jnp.float32))


def test_labels_may_be_small_integers():
    """The number of classes may be beyond their type."""
    model = ResNet(300, stage_sizes=(1,), width=4)
    variables = modules.variables(model, *IMAGE.shape)
    np.testing.assert_array_equal(
        _compiled_grad_cam(model, variables, IMAGE, LABEL.astype(jnp.uint8)),
        _compiled_grad_cam(model, variables, IMAGE, LABEL),
    )
