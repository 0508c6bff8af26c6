"""Image classification: batches, evaluation, plots."""

import dataclasses
import functools
import pathlib
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from train_jax.data import ImageSplit
from train_jax.devices import compiler
from train_jax.learning.augment import (
    TestAugmentation,
    augment_batch,
    augmented_views,
    normalize,
)
from train_jax.learning.batch import Batch
from train_jax.learning.step import cross_entropy
from train_jax.output import attention_plots, plots
from train_jax.tasks.task import EvalStep
from vit_jax.interpret import attention_weights, patch_relevance, pool_weights

Array = jax.Array

# Number of test images whose attention is drawn.
_NUM_ATTENTION_IMAGES = 8


@dataclasses.dataclass(frozen=True)
class Classification:
    """Image classification, see `Task`.

    Attributes:
        image_shape: height, width and channels.
        class_names: a name for each of the Y classes.
        mean: of pixels in [0, 1], of each channel or of each value of an image, see
            `normalize`.
        std: of each channel.
        augment: further arguments of `augment_batch`.
        border: mean brightness of the training images' borders, 0 to 1, if known.
    """

    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: dict[str, Any] = dataclasses.field(default_factory=dict)
    border: float | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes Y."""
        return len(self.class_names)

    @property
    def model_fields(self) -> dict[str, Any]:
        """The number of classes."""
        return {"num_classes": self.num_classes}

    def inputs(self) -> tuple[Array, ...]:
        """Make one image, (1, H, W, C), all zeros."""
        return (jnp.zeros((1, *self.image_shape)),)

    def normalize(self, image_BHWC: Array) -> Array:
        """Scale uint8 images as those of the training; see `augment.normalize`."""
        return normalize(image_BHWC, mean=self.mean, std=self.std)

    def make_batch(
        self,
        key: Array,
        image_BHWC: Array,
        label_B: Array,
        *,
        index_B: Array | None = None,
        epoch: Array | None = None,
    ) -> Batch:
        """Augment and normalise images; turn labels into class probabilities.

        Args:
            image_BHWC: uint8.
            label_B: integers.
            index_B: see `augment_batch`.
            epoch: see `augment_batch`.

        Returns:
            (image_BHWC,), target_BY: both float32.
        """
        self._check_examples(image_BHWC, label_B)
        image_BHWC, target_BY = augment_batch(
            key,
            image_BHWC,
            label_B,
            num_classes=self.num_classes,
            mean=self.mean,
            std=self.std,
            index_B=index_B,
            epoch=epoch,
            **self.augment,
        )
        chex.assert_shape(image_BHWC, (len(label_B), *self.image_shape))
        chex.assert_shape(target_BY, (len(label_B), self.num_classes))
        return (image_BHWC,), target_BY

    def make_eval_step(
        self, model: nn.Module, augmentation: TestAugmentation | None = None
    ) -> EvalStep:
        """Make the step; its output is the probability of each class, (B, Y).

        Args:
            augmentation: see `augmented_views`, whose logits are averaged.
        """

        def eval_step(variables: Any, image_BHWC: Array, label_B: Array):
            self._check_examples(image_BHWC, label_B)
            views = [(1.0, image_BHWC)]
            if augmentation is not None:
                views = augmented_views(image_BHWC, augmentation)
            logits_BY: Array = sum(
                weight * model.apply(variables, self.normalize(view), train=False)  # type: ignore
                for weight, view in views
            )
            loss_B = cross_entropy(logits_BY, jax.nn.one_hot(label_B, self.num_classes))
            hit_B = logits_BY.argmax(axis=-1) == label_B
            probability_BY = jax.nn.softmax(logits_BY)
            chex.assert_equal_shape([loss_B, hit_B, label_B])
            chex.assert_shape(probability_BY, (len(label_B), self.num_classes))
            return loss_B, hit_B, probability_BY

        return eval_step

    def _check_examples(self, image_BHWC: Array, label_B: Array) -> None:
        """Assert the shapes of raw examples."""
        chex.assert_shape(image_BHWC, (None, *self.image_shape))
        chex.assert_rank(label_B, 1)
        chex.assert_equal_shape_prefix([image_BHWC, label_B], 1)

    def plot(
        self,
        model: nn.Module,
        variables: Any,
        split: ImageSplit,
        output_M: np.ndarray,
        folder: pathlib.Path,
    ) -> None:
        """Draw the confusion matrix, the worst errors, and attention maps of a ViT."""
        names, predicted_M = split.class_names, output_M.argmax(axis=-1)
        label_M = np.asarray(split.label_B)
        plots.plot_confusion(
            label_M, predicted_M, names, folder / "confusion_matrix.png"
        )
        plots.plot_misclassified(
            split.image_BHWC,
            label_M,
            output_M,
            names,
            folder / "misclassified.png",
        )
        image_BHWC = np.asarray(split.image_BHWC[:_NUM_ATTENTION_IMAGES])
        inputs = (variables, self.normalize(jnp.asarray(image_BHWC)))
        capture = functools.partial(attention_weights, model)
        weights = compiler.fast_jit(capture)(*inputs)
        if not weights:
            return
        weight_BT = None
        if getattr(model, "pool", None) in ("sequence", "map"):
            weight_BT = compiler.fast_jit(functools.partial(pool_weights, model))(
                *inputs
            )
        has_class_token = getattr(model, "pool", None) == "cls"
        relevance_BT = patch_relevance(
            weights[-1].mean(axis=1),
            has_class_token=has_class_token,
            num_registers=getattr(model, "num_registers", 0),
            weight_BT=weight_BT,
        )
        attention_plots.plot_attention(
            image_BHWC,
            np.asarray(relevance_BT),
            [names[label] for label in predicted_M[:_NUM_ATTENTION_IMAGES]],
            folder / "attention.png",
            has_class_token=has_class_token,
        )
