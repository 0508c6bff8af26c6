"""Batches of no images go through; fields and images that make no sense do not."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import BasicBlock, BottleneckBlock, ResNet
from resnet_jax.cpu.convolution import conv_general_dilated
from resnet_jax.cpu.winograd import conv3x3
from tests import modules


def _resnet(**fields) -> ResNet:
    defaults = {"num_classes": 5, "stage_sizes": (1, 1), "width": 4}
    return ResNet(**(defaults | fields))


CONVOLUTIONS = [jax.lax.conv_general_dilated, conv_general_dilated]


@pytest.mark.parametrize("convolution", CONVOLUTIONS, ids=["xla", "cpu"])
@pytest.mark.parametrize(
    "fields", [{}, {"stem": "imagenet", "block": BottleneckBlock}], ids=["small", "imn"]
)
def test_resnet_takes_an_empty_batch(fields, convolution):
    model = _resnet(**fields, conv_general_dilated=convolution)
    image_BHWC = jnp.ones((0, 9, 8, 3))
    variables = modules.variables(model, image_BHWC)
    assert modules.apply(model, variables, image_BHWC).shape == (0, 5)

    @jax.jit
    def step(params):
        def loss(params):
            logits_BY, updated = model.apply(
                variables | {"params": params},
                image_BHWC,
                train=True,
                mutable=["batch_stats"],
            )
            return logits_BY.sum(), updated["batch_stats"]

        return jax.grad(loss, has_aux=True)(params)

    gradient, batch_stats = step(variables["params"])
    for leaf in jax.tree.leaves(gradient):
        np.testing.assert_array_equal(leaf, 0)
    # No image, no statistics: those of before stay.
    jax.tree.map(np.testing.assert_array_equal, batch_stats, variables["batch_stats"])


@pytest.mark.parametrize("shape", [(0, 8, 8, 120), (0, 8, 8, 32), (0, 5, 7, 3)])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_take_an_empty_batch(shape, stride):
    image, kernel = jnp.ones(shape), jnp.ones((3, 3, shape[-1], 20))

    def convolve(image, kernel):
        if stride == 1:
            np.testing.assert_equal(conv3x3(image, kernel).shape, (*shape[:3], 20))
        border = [(1, 1), (1, 1)]
        return conv_general_dilated(image, kernel, (stride, stride), border)

    out, pull = jax.vjp(convolve, image, kernel)
    assert out.shape == (0, *(-(-side // stride) for side in shape[1:3]), 20)
    gradients = pull(out)
    assert gradients[0].shape == shape
    np.testing.assert_array_equal(gradients[1], jnp.zeros_like(kernel))
    out, pull = jax.vjp(conv3x3, image, kernel)
    np.testing.assert_array_equal(pull(out)[1], jnp.zeros_like(kernel))


def _rejects(message: str):
    return pytest.raises(ValueError, match=f"(?m)^{re.escape(message)}")


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"width": -4}, "width must be at least 1, got -4"),
        ({"momentum": 1.5}, "momentum must be in [0, 1], got 1.5"),
        ({"dtype": None}, "dtype must be a floating-point dtype, got None"),
        *(
            (
                {"stage_sizes": sizes},
                "stage_sizes must be of at least 1 stage of at least 1 block, got "
                f"{sizes}",
            )
            for sizes in ((), (0,), (1, 0), (2, -1))
        ),
    ],
)
def test_resnet_rejects_fields_out_of_range(fields, message):
    with _rejects(message):
        modules.shapes(_resnet(**fields), 1, 8, 8, 3)


@pytest.mark.parametrize("shape", [(2, 0, 8, 3), (2, 8, 0, 3), (2, 8, 8, 0)])
def test_resnet_rejects_images_without_pixels(shape):
    with _rejects(
        f"image_BHWC must have at least 1 pixel and channel, got shape {shape}"
    ):
        modules.shapes(_resnet(), *shape)


@pytest.mark.parametrize("block", [BasicBlock, BottleneckBlock])
@pytest.mark.parametrize(
    "fields, name", [({"features": 0}, "features"), ({"stride": 0}, "stride")]
)
def test_blocks_reject_fields_out_of_range(block, fields, name):
    with _rejects(f"{name} must be at least 1, got 0"):
        modules.shapes(block(**({"features": 4} | fields)), 1, 8, 8, 3)


@pytest.mark.parametrize(
    "side, strides, border",
    [
        (3, (0, 1), [(1, 1), (1, 1)]),
        (3, (1, -1), [(1, 1), (1, 1)]),
        (3, (1, 1), [(-1, 1), (1, 1)]),
        (5, (2, 2), [(0, 0), (0, 0)]),
        (0, (1, 1), [(0, 0), (0, 0)]),
    ],
)
def test_the_window_moves_within_the_image(side, strides, border):
    image, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((side, side, 2, 3))
    with _rejects(
        "expected strides of at least 1, a border of at least 0 and a kernel"
    ):
        conv_general_dilated(image, kernel, strides, border)
