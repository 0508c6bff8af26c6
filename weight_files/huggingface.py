"""What Hugging Face's image classifiers have in common: preprocessor_config.json."""

from typing import Any

from weight_files.pretrained import Pretrained

_RESAMPLING = {"bilinear": 2, "bicubic": 3}


def preprocessor_config(pretrained: Pretrained, kind: str) -> dict[str, Any]:
    """Make the content of preprocessor_config.json.

    Args:
        pretrained: the model and what belongs to it.
        kind: name of the image processor.

    Raises:
        ValueError: if mean and standard deviation are not known.
    """
    if pretrained.mean is None or pretrained.std is None:
        raise ValueError("mean and std must be known to write for Hugging Face")
    height, width, _ = pretrained.image_shape
    return {
        "image_processor_type": kind,
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": _RESAMPLING[pretrained.resampling],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(pretrained.mean),
        "image_std": list(pretrained.std),
    }
