"""Grad-CAM: the regions of an image that a ResNet's score of a class depends on."""

from typing import Any

import chex
import jax
import jax.numpy as jnp

from resnet_jax.resnet import ResNet

Array = jax.Array


def grad_cam(model: ResNet, variables: Any, image_BHWC: Array, label_B: Array) -> Array:
    """Compute the Grad-CAM map of a class.

    The channels of the last feature map are weighted by the mean gradient of the
    class's logit and summed; negative values are set to 0. Only average pooling and a
    linear layer follow, so the gradient is the layer's kernel divided by the number of
    positions, and no backward pass is needed.

    >>> model = ResNet(10, stage_sizes=(1, 1), width=4)
    >>> image_BHWC, label_B = jnp.ones((1, 8, 8, 3)), jnp.zeros(1, int)
    >>> variables = model.init(jax.random.key(0), image_BHWC)
    >>> grad_cam(model, variables, image_BHWC, label_B).shape
    (1, 4, 4)

    Args:
        model: with a head.
        variables: its variables.
        image_BHWC: normalised images, floating point.
        label_B: the classes to look for, integers in [0, Y).

    Returns:
        map_BHW of the last feature map's height and width, float32 or wider; zeros for
        a class that there is not.

    Raises:
        ValueError: if the model has no head.

    References: arXiv:1610.02391, eq. 1 and 2.
    """
    chex.assert_rank([image_BHWC, label_B], [4, 1])
    chex.assert_type(label_B, int)
    chex.assert_equal_shape_prefix([image_BHWC, label_B], 1)
    if model.num_classes is None:
        raise ValueError("grad_cam needs a model with a head, got num_classes None")
    feature_BHWF: Any = model.apply(variables, image_BHWC, return_map=True)
    batch, height, width, _ = feature_BHWF.shape
    kernel_FY = variables["params"]["head"]["kernel"]
    one_hot_BY = jax.nn.one_hot(
        label_B.astype(jnp.int32), model.num_classes, dtype=kernel_FY.dtype
    )
    weight_BF = jnp.matmul(one_hot_BY, kernel_FY.T, precision="highest")
    weight_BF /= height * width
    map_BHW = jnp.einsum("BHWF,BF->BHW", feature_BHWF, weight_BF, precision="highest")
    chex.assert_shape(map_BHW, (batch, height, width))
    return jax.nn.relu(map_BHW)
