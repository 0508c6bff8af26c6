"""A model with its weights, and what belongs to them."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from weight_files.table import first_three

Resampling = Literal["bilinear", "bicubic"]
Resize = Literal["crop", "stretch"]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET_CROP_FRACTION = 224 / 256


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A trained model, its variables, and how its images are prepared.

    Attributes:
        model: the module.
        variables: its variables.
        image_shape: height, width and channels of its input.
        mean: of each channel, of pixels in [0, 1]; None where neither the source nor
            the custom of its library says.
        std: likewise.
        class_names: a name for each class; None where the source does not say.
        crop_fraction: an image is resized to the model's size divided by this (its
            shorter side, if it keeps its proportions), and then cropped.
        resampling: how it is resized.
        resize: whether it keeps its proportions ("crop") or not ("stretch").
    """

    model: nn.Module
    variables: Any
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    class_names: tuple[str, ...] | None = None
    crop_fraction: float = 1.0
    resampling: Resampling = "bilinear"
    resize: Resize = "crop"


# What reading arrays of another layout, or of an unexpected form, raises.
WRONG_CONTENT = (KeyError, IndexError, TypeError, AttributeError, ValueError)


def describe_error(error: Exception) -> str:
    """Say in one line what is wrong with the content of weights."""
    text = " ".join(str(error).split())
    if isinstance(error, KeyError):
        return f"they lack {text}"
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


def check_fields(module: type[nn.Module], fields: Mapping[str, Any]) -> None:
    """Raise ValueError for a name that is no field of a module."""
    known = {field.name for field in dataclasses.fields(module)} - {"parent", "name"}
    for name in fields:
        if name not in known:
            raise ValueError(
                f"{name} is no field of {module.__name__}; it has "
                f"{', '.join(sorted(known))}"
            )


def fit_to_model(
    model: nn.Module,
    variables: Mapping[str, Any],
    image_shape: tuple[int, int, int],
) -> Any:
    """Check that variables are those of a model; give each array the model's axes.

    Args:
        model: the module, which takes images.
        variables: arrays, which may differ from the model's by axes of length 1.
        image_shape: height, width and channels.

    Raises:
        ValueError: naming the first three that are missing, left over or of another
            shape.
    """
    ours = _expected(model, image_shape)
    flat: Any = flax.traverse_util.flatten_dict(dict(variables), sep="/")
    for path in ours.keys() & flat.keys():
        sides = [[n for n in it[path].shape if n != 1] for it in (ours, flat)]
        if sides[0] == sides[1]:
            flat[path] = flat[path].reshape(ours[path].shape)
    if mismatch := _find_mismatch(flat, ours):
        raise ValueError(f"they {mismatch}")
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def _expected(model: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """Describe the variables of a model: path → shape and dtype."""
    image = jnp.zeros((1, *image_shape))
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    return flax.traverse_util.flatten_dict(dict(variables), sep="/")  # type: ignore


def check_variables(
    variables: Mapping[str, Any], model: nn.Module, image_shape: tuple[int, int, int]
) -> None:
    """Raise ValueError unless variables are those of a model; a head may be missing."""
    given = flax.traverse_util.flatten_dict(dict(variables), sep="/")
    wanted = _expected(model, image_shape)
    if "head" not in variables["params"]:
        wanted = {k: v for k, v in wanted.items() if not k.startswith("params/head/")}
    if mismatch := _find_mismatch(given, wanted):
        raise ValueError(f"the weights {mismatch}")


def without_other_head(
    variables: Mapping[str, Any], old: nn.Module, new: nn.Module
) -> dict[str, Any]:
    """Leave the head out if it is one for another number of classes."""
    if old.num_classes == new.num_classes:  # type: ignore (of all models)
        return dict(variables)
    params = {k: v for k, v in variables["params"].items() if k != "head"}
    return {**variables, "params": params}


def without_head(pretrained: Pretrained) -> Pretrained:
    """Leave the head out: a model of the features before it."""
    model = pretrained.model.clone(num_classes=None)  # type: ignore (of all models)
    variables = without_other_head(pretrained.variables, pretrained.model, model)
    return dataclasses.replace(
        pretrained, model=model, variables=variables, class_names=None
    )


def _find_mismatch(given: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """Say how arrays differ from those that a model has, in names and shapes.

    Args:
        given: path → array.
        wanted: path → array, or its description.

    Returns:
        What "they" do, naming the first three; None if all fit.
    """
    wrong = {
        f"{path} {given[path].shape} instead of {wanted[path].shape}"
        for path in wanted.keys() & given.keys()
        if given[path].shape != wanted[path].shape
    }
    for names, fault in (
        (wanted.keys() - given.keys(), "lack the parameters"),
        (given.keys() - wanted.keys(), "have parameters that the model does not have:"),
        (wrong, "have other shapes than the model:"),
    ):
        if names:
            return f"{fault} {first_three(names)}"
    return None


def adapt_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Fit a first layer's kernel to another number of input channels, as timm does.

    To one channel the kernel is summed over its channels: a grey image then gives what
    the same image in colour gave. To any other number its channels are repeated and
    cut, and scaled by the ratio of the numbers of channels.

    >>> adapt_channels(np.ones((4, 4, 3, 8)), 1)[0, 0, 0, 0]
    np.float64(3.0)

    Args:
        kernel: (height, width, C, F).
        channels: the number of channels that is wanted.

    Returns:
        The kernel (height, width, `channels`, F), in the dtype given.
    """
    old = kernel.shape[2]
    if channels == old:
        return kernel
    if channels == 1:
        return kernel.sum(axis=2, keepdims=True)
    repeated = np.concatenate([kernel] * -(-channels // old), axis=2)[:, :, :channels]
    return (repeated * np.float32(old / channels)).astype(kernel.dtype)
