"""Fit the weights of a ResNet to a model for other images or classes."""

from typing import Any

import numpy as np

from resnet_jax.resnet import ResNet
from weight_files import Pretrained, adapt_channels, check_variables, without_other_head


def fit(
    pretrained: Pretrained, model: ResNet, image_shape: tuple[int, int, int]
) -> dict[str, Any]:
    """Fit a ResNet's weights to a model for other images or classes, to fine-tune it.

    The first layer's kernel is adapted to the new number of channels. A head for
    another number of classes is left out.

    >>> import jax
    >>> model = ResNet(10, stage_sizes=(1,), width=4)
    >>> variables = model.init(jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))
    >>> pretrained = Pretrained(model, variables, (8, 8, 3))
    >>> fitted = fit(pretrained, model.clone(num_classes=5), (8, 8, 1))
    >>> fitted["params"]["stem_conv"]["kernel"].shape, "head" in fitted["params"]
    ((3, 3, 1, 4), False)

    Args:
        pretrained: the weights, as `load` returns them.
        model: the new model.
        image_shape: height, width and channels of its images.

    Returns:
        The new model's `params`, without a head that is left out, and `batch_stats`.

    Raises:
        ValueError: naming arrays that the model has not, or in other shapes.
    """
    variables = without_other_head(pretrained.variables, pretrained.model, model)
    params = dict(variables["params"])
    kernel = adapt_channels(np.asarray(params["stem_conv"]["kernel"]), image_shape[2])
    params["stem_conv"] = {**params["stem_conv"], "kernel": kernel}
    fitted = {**variables, "params": params}
    check_variables(fitted, model, image_shape)
    return fitted
