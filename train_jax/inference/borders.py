"""Detect inverted pictures: dark on white, for a model trained on white on black."""

import numpy as np

from train_jax.run.pixels import border_brightness
from train_jax.tasks import Classification

# A border is dark below the one, and bright above the other.
_DARK, _BRIGHT = 0.25, 0.5


def has_opposite_border(task: Classification, image_HWC: np.ndarray) -> bool:
    """Whether a grey picture has a bright border, and the training's dark ones.

    Args:
        task: what the model was trained on; it says the brightness, where it is known.
        image_HWC: uint8, of the model's size.
    """
    if task.border is None or task.border > _DARK or task.image_shape[2] != 1:
        return False
    return border_brightness(image_HWC[None]) > _BRIGHT
