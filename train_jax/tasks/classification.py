"""Tell which of several classes an image belongs to."""

import dataclasses
import functools
import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from train_jax.config.models import IMAGE_MODELS
from train_jax.data import ImageSplit
from train_jax.devices import compiler
from train_jax.learning.augment import augment_batch, normalize
from train_jax.learning.step import Batch, cross_entropy
from train_jax.output import attention_plots, plots
from train_jax.tasks.task import EvalStep
from vit_jax.interpret import attention_weights, patch_relevance

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Classification:
    """Image classification, see `Task`.

    Attributes:
        image_shape: height, width and channels.
        class_names: a name for each of the Y classes.
        mean: of each channel, of pixels in [0, 1].
        std: likewise.
        augment: further arguments of `augment_batch`.
    """

    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: dict[str, Any] = dataclasses.field(default_factory=dict)

    models = tuple(IMAGE_MODELS)

    @property
    def num_classes(self) -> int:
        """Number of classes Y."""
        return len(self.class_names)

    @property
    def model_fields(self) -> dict[str, Any]:
        """The number of classes."""
        return {"num_classes": self.num_classes}

    def inputs(self) -> tuple[Array, ...]:
        """One image."""
        return (jnp.zeros((1, *self.image_shape)),)

    def make_batch(self, key: Array, *examples: Array) -> Batch:
        """Augment and normalise images; labels become class probabilities."""
        image_BHWC, target_BY = augment_batch(
            key,
            *examples,
            num_classes=self.num_classes,
            mean=self.mean,
            std=self.std,
            **self.augment,
        )
        return (image_BHWC,), target_BY

    def make_eval_step(self, model: nn.Module) -> EvalStep:
        """Make the step; an answer is the probability of each class."""

        def eval_step(variables: Any, image_BHWC: Array, label_B: Array):
            image_BHWC = normalize(image_BHWC, mean=self.mean, std=self.std)
            logits_BY: Array = model.apply(variables, image_BHWC, train=False)  # type: ignore
            loss_B = cross_entropy(logits_BY, jax.nn.one_hot(label_B, self.num_classes))
            hit_B = logits_BY.argmax(axis=-1) == label_B
            return loss_B, hit_B, jax.nn.softmax(logits_BY)

        return eval_step

    def plot(
        self,
        model: nn.Module,
        variables: Any,
        split: ImageSplit,
        output_M: np.ndarray,
        folder: pathlib.Path,
    ) -> None:
        """Draw confusion matrix, mistakes, and where the first images are looked at."""
        names, predicted_M = split.class_names, output_M.argmax(axis=-1)
        plots.plot_confusion(
            split.label_B, predicted_M, names, folder / "confusion_matrix.png"
        )
        plots.plot_misclassified(
            split.image_BHWC,
            split.label_B,
            output_M,
            names,
            folder / "misclassified.png",
        )
        image_BHWC = split.image_BHWC[:8]
        weights = compiler.fast_jit(functools.partial(attention_weights, model))(
            variables,
            normalize(jnp.asarray(image_BHWC), mean=self.mean, std=self.std),
        )
        if weights:
            has_class_token = "cls" in variables["params"]
            relevance_BP = patch_relevance(
                weights[-1].mean(axis=1), has_class_token=has_class_token
            )
            attention_plots.plot_attention(
                image_BHWC,
                np.asarray(relevance_BP),
                [names[label] for label in predicted_M[:8]],
                folder / "attention.png",
                has_class_token=has_class_token,
            )
