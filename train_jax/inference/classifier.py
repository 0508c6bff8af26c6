"""Classify pictures of any size with a trained model, in batches."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from train_jax.data.resize import change_channels, resize_image
from train_jax.devices import policy
from train_jax.run.trained_model import TrainedModel, require_images


def fit_image(trained: TrainedModel, image_HWC: np.ndarray) -> np.ndarray:
    """Resize a picture to a model's input size, as in its training.

    Args:
        trained: the model.
        image_HWC: uint8, of any size, grey or RGB.

    Returns:
        image_HWC of the model's input, uint8.
    """
    height, width, channels = require_images(trained).image_shape
    return resize_image(
        change_channels(image_HWC, channels),
        (height, width),
        how=trained.resize,
        crop_fraction=trained.crop_fraction,
        resampling=trained.resampling,
        background=0,
    )


class Classifier:
    """A trained model that tells the classes of pictures.

    Attributes:
        task: what the model was trained on.
        trained: the model.
    """

    def __init__(self, trained: TrainedModel, *, batch_size: int = 64):
        """Compile when it is first used.

        Args:
            trained: the model.
            batch_size: so many images are classified at once.

        Raises:
            ValueError: if the model does not classify images.
        """
        self.task = task = require_images(trained)
        self.trained = trained
        self._batch_size = batch_size
        self._variables = jax.device_put(trained.variables)

        def classify(variables, image_BHWC):
            image_BHWC = task.normalize(image_BHWC)
            return jax.nn.softmax(trained.model.apply(variables, image_BHWC))  # type: ignore

        jit = policy.jit_of_model(trained.model, platform=jax.default_backend())
        self._classify = jit(classify)

    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Compute the classes' probabilities.

        Args:
            images: of the model's input, uint8.

        Returns:
            probability_BY, float32.
        """
        outputs = []
        for start in range(0, len(images), self._batch_size):
            part = np.stack(images[start : start + self._batch_size])
            missing = self._batch_size - len(part)
            padded = np.pad(part, [(0, missing)] + [(0, 0)] * 3)
            probability_BY = self._classify(self._variables, jnp.asarray(padded))
            outputs.append(np.asarray(probability_BY)[: len(part)])
        return np.concatenate(outputs)
