"""The fast network for CIFAR-10, its pooling and its whitening."""

import functools
import pickle

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import AirbenchNet, max_pool, whitening_kernel
from tests import modules
from tests.modules import normal

KEY = jax.random.key(0)
IMAGE_BHWC = normal(4, 32, 32, 3)


def test_max_pool_takes_the_largest_value_of_each_window():
    x_BHWC = np.random.default_rng(0).normal(size=(2, 7, 9, 3))
    expected = x_BHWC[:, :6, :8].reshape(2, 3, 2, 4, 2, 3).max(axis=(2, 4))
    np.testing.assert_allclose(max_pool(jnp.asarray(x_BHWC), 2), expected, rtol=1e-6)


def test_whitened_patches_are_uncorrelated():
    mixed = jnp.cumsum(normal(64, 12, 12, 3), axis=2)
    kernel = jax.jit(functools.partial(whitening_kernel, epsilon=0.0))(mixed)
    numbers = ("NHWC", "HWIO", "NHWC")
    out = jax.lax.conv_general_dilated(
        mixed, kernel[..., :12], (1, 1), "VALID", dimension_numbers=numbers
    ).reshape(-1, 12)
    np.testing.assert_allclose(out.T @ out / len(out), np.eye(12), atol=2e-2)
    np.testing.assert_array_equal(kernel[..., 12:], -kernel[..., :12])


def test_convolutions_start_as_identities():
    model = AirbenchNet(10, widths=(32, 32, 32))

    @jax.jit
    def start(image_BHWC):  # XLA computes what is returned alone
        return model.init(KEY, image_BHWC)["params"]["group1_conv2"]["kernel"]

    kernel = start(IMAGE_BHWC)
    x_BHWC = normal(1, 5, 5, 32)
    numbers = ("NHWC", "HWIO", "NHWC")
    out = jax.lax.conv_general_dilated(
        x_BHWC, kernel, (1, 1), "SAME", dimension_numbers=numbers
    )
    np.testing.assert_allclose(out, x_BHWC, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "num_params"),
    [({}, 1_971_640), ({"widths": (128, 384, 384), "group_depth": 3}, 7_407_288)],
)
def test_parameters(fields, num_params):
    variables = jax.eval_shape(AirbenchNet(10, **fields).init, KEY, IMAGE_BHWC)
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == num_params


def test_the_whitening_kernel_is_frozen_and_its_bias_is_not():
    model = AirbenchNet(10, widths=(8, 8, 8))
    variables = modules.variables(model, *IMAGE_BHWC.shape)

    def loss(params):
        logits, _ = model.apply(
            {**variables, "params": params}, IMAGE_BHWC, train=True, mutable=True
        )
        return jnp.square(logits).sum()

    gradient = jax.jit(jax.grad(loss))(variables["params"])
    assert not gradient["whitening"].any()
    assert gradient["whitening_bias"].any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"widths": (8, 8)}, "widths must be three numbers"),
        ({"group_depth": 4}, "group_depth must be 2 or 3, got 4"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
    ],
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        AirbenchNet(**{"num_classes": 10, **fields}).init(KEY, IMAGE_BHWC)


def test_all_of_an_oblong_image_is_pooled(monkeypatch):
    model = AirbenchNet(None, widths=(4, 4, 4))
    variables = jax.jit(model.init)(KEY, IMAGE_BHWC)
    x_BHWC = normal(2, 10, 15, 4)
    monkeypatch.setattr(AirbenchNet, "_whiten", lambda self, _: x_BHWC)
    monkeypatch.setattr(AirbenchNet, "_group", lambda self, x, *_, train: x)
    found_BF = model.apply(variables, normal(2, 10, 15, 3))
    np.testing.assert_array_equal(found_BF, nn.gelu(x_BHWC).max(axis=(1, 2)))


def test_an_image_that_is_too_small_is_refused():
    with pytest.raises(ValueError, match="at least 9 pixels high and wide"):
        AirbenchNet(10).init(KEY, IMAGE_BHWC[:, :8])


def test_windows_and_patches_have_pixels():
    with pytest.raises(ValueError, match="window must be at least 1, got 0"):
        max_pool(IMAGE_BHWC, 0)
    for image_BHWC in (IMAGE_BHWC[:0], IMAGE_BHWC[:, :1]):
        with pytest.raises(ValueError, match="image_BHWC must hold a patch of 2x2"):
            whitening_kernel(image_BHWC)


def test_it_can_be_pickled():
    model = AirbenchNet(10)
    assert pickle.loads(pickle.dumps(model)) == model
