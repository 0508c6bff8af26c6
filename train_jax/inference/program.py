"""Export the whole computation of a classifier, from pixels to probabilities."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from train_jax.data.tfds_read import import_tensorflow
from train_jax.devices import policy
from train_jax.run.trained_model import TrainedModel, require_images

_PLATFORMS = ("cpu", "cuda", "tpu")


def make_program(trained: TrainedModel) -> Callable[[jax.Array], dict[str, jax.Array]]:
    """Make the function from uint8 images to logits and probabilities.

    Its operations are those that every device has.

    Raises:
        ValueError: if the model does not classify images.
    """
    task = require_images(trained)
    model: Any = policy.portable_model(trained.model)

    def classify(image_BHWC: jax.Array) -> dict[str, jax.Array]:
        image_BHWC = task.normalize(image_BHWC)
        logits_BY = model.apply(trained.variables, image_BHWC)
        return {"logits": logits_BY, "probabilities": jax.nn.softmax(logits_BY)}

    return classify


def export_stablehlo(trained: TrainedModel) -> bytearray:
    """Serialise the computation for any batch size, on CPUs, NVIDIA GPUs and TPUs.

    `jax.export.deserialize` reads it, in a process that has only jax and flatbuffers.

    Raises:
        ValueError: if flatbuffers, of the extra [export], is not installed.
    """
    task = require_images(trained)
    sides = ", ".join(map(str, task.image_shape))
    shape = jax.export.symbolic_shape(f"batch, {sides}")
    image = jax.ShapeDtypeStruct(shape, jnp.uint8)
    program = jax.jit(make_program(trained))
    exported = jax.export.export(program, platforms=_PLATFORMS)(image)
    try:
        return exported.serialize()
    except ImportError as error:
        raise ValueError(
            '--format stablehlo needs flatbuffers: pip install "vit-resnet-jax[export]"'
        ) from error


def export_savedmodel(
    trained: TrainedModel, folder: pathlib.Path
) -> list[pathlib.Path]:
    """Write a SavedModel of TensorFlow, for any batch size.

    Its signature takes `image`, uint8, and returns `logits` and `probabilities`.

    Raises:
        ValueError: if TensorFlow is not installed, or is too old for this version of
            JAX.
    """
    tf = import_tensorflow("--format savedmodel")
    from jax.experimental import jax2tf

    task = require_images(trained)
    sides = ", ".join(map(str, task.image_shape))
    convert = jax2tf.convert(
        make_program(trained),
        polymorphic_shapes=[f"batch, {sides}"],
        native_serialization_platforms=("cpu", "cuda"),
        with_gradient=False,
    )
    signature = tf.TensorSpec((None, *task.image_shape), tf.uint8, name="image")
    module: Any = tf.Module()
    module.classify = tf.function(convert, input_signature=[signature], autograph=False)
    try:
        module.classify(tf.zeros((1, *task.image_shape), tf.uint8))
    except tf.errors.InvalidArgumentError as error:  # a StableHLO from its future
        raise ValueError(
            f"TensorFlow {tf.__version__} cannot run what JAX {jax.__version__} "
            "exports; --format savedmodel needs a newer TensorFlow or an older JAX"
        ) from error
    tf.saved_model.save(module, str(folder), signatures=module.classify)
    return sorted(path for path in folder.rglob("*") if path.is_file())
