"""Draw what a trained model looks at: attention of a ViT, Grad-CAM of a ResNet."""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.interpret import grad_cam
from resnet_jax.resnet import ResNet
from train_jax.devices import compiler
from train_jax.output import attention_plots
from train_jax.run.trained_model import TrainedModel, require_images
from vit_jax.interpret import (
    attention_rollout,
    attention_weights,
    mean_attention_distance,
    patch_relevance,
    pool_weights,
    position_similarity,
)
from vit_jax.vit import ViT

# Number of images at a time: the attention of all would not fit into memory.
_NUM_AT_ONCE = 8


def make_explainer(
    trained: TrainedModel, *, layer: int | None = None, head: int | None = None
) -> "ViTExplainer | ResNetExplainer":
    """Make the explainer that belongs to a model.

    Args:
        trained: the model.
        layer: layer of a ViT to draw, from 1; the last one if None.
        head: head of a ViT to draw, from 1; all of them if None.

    Raises:
        ValueError: if the model is neither a ViT nor a ResNet, or has no such layer or
            head.
    """
    if isinstance(trained.model, ViT):
        return ViTExplainer(trained, layer, head)
    if isinstance(trained.model, ResNet):
        for flag, value in (("--layer", layer), ("--head", head)):
            if value is not None:
                raise ValueError(f"{flag} is for a ViT alone")
        return ResNetExplainer(trained)
    raise ValueError(
        f"the model must be a ViT or a ResNet to be explained, got {trained.name!r}"
    )


class ViTExplainer:
    """Draws attention maps and position embeddings of a trained ViT."""

    def __init__(self, trained: TrainedModel, layer: int | None, head: int | None):
        """Choose what is drawn, see `make_explainer`."""
        model: Any = trained.model
        for flag, value, most in (
            ("--layer", layer, model.depth),
            ("--head", head, model.num_heads),
        ):
            if value is not None and not 1 <= value <= most:
                raise ValueError(f"{flag} must be in [1, {most}], got {value}")
        self._layer = model.depth if layer is None else layer
        self._heads = range(1, model.num_heads + 1) if head is None else [head]
        task = require_images(trained)
        self._task, self._model, self._variables = task, model, trained.variables
        self._has_class_token = model.pool == "cls"
        self._tokens: Any = {
            "has_class_token": self._has_class_token,
            "num_registers": model.num_registers,
        }
        height, width, _ = task.image_shape
        self._grid = (height // model.patch_size, width // model.patch_size)
        self._attend = compiler.fast_jit(functools.partial(attention_weights, model))
        self._pool = compiler.fast_jit(functools.partial(pool_weights, model))
        self._classify = compiler.fast_jit(functools.partial(model.apply, train=False))

    def draw_image(self, image_HWC: np.ndarray, path: pathlib.Path) -> None:
        """Draw an image, its prediction, the attention rollout and a layer's heads.

        Args:
            image_HWC: uint8.
            path: the PNG to write.
        """
        input_BHWC = self._task.normalize(jnp.asarray(image_HWC[None]))
        probability_Y = jax.nn.softmax(self._classify(self._variables, input_BHWC))[0]
        layers = self._attend(self._variables, input_BHWC)
        tokens = self._tokens
        if self._model.pool in ("sequence", "map"):
            weight_BT = self._pool(self._variables, input_BHWC)
            tokens = {**tokens, "weight_BT": weight_BT}
        maps = {"rollout": attention_rollout(layers, residual=self._model.residual)}
        for number in self._heads:
            title = f"layer {self._layer}, head {number}"
            maps[title] = layers[self._layer - 1][:, number - 1]
        relevance = {
            title: np.asarray(patch_relevance(map_BTT, **tokens)[0]).reshape(self._grid)
            for title, map_BTT in maps.items()
        }
        attention_plots.plot_explanation(
            image_HWC,
            np.asarray(probability_Y),
            self._task.class_names,
            relevance,
            path,
            patch_size=self._model.patch_size,
        )

    def _distances(self, image_BHWC: np.ndarray) -> np.ndarray:
        """Compute each head's mean attention distance, in pixels: (L, N)."""
        input_BHWC = self._task.normalize(jnp.asarray(image_BHWC))
        layers = self._attend(self._variables, input_BHWC)
        return self._model.patch_size * np.stack(
            [
                mean_attention_distance(weights_BNTT, grid=self._grid, **self._tokens)
                for weights_BNTT in layers
            ]
        )

    def draw_model(self, folder: pathlib.Path, image_BHWC: np.ndarray) -> list[str]:
        """Draw the heads' attention distances and the position embeddings' similarity.

        Args:
            folder: the PNGs go there.
            image_BHWC: uint8, the images that the distance is averaged over.

        Returns:
            The names of the files written.
        """
        # A few at a time: all layers' weights of many images may not fit into memory.
        parts = np.split(image_BHWC, range(_NUM_AT_ONCE, len(image_BHWC), _NUM_AT_ONCE))
        distance_LN = np.average(
            [self._distances(part_BHWC) for part_BHWC in parts],
            axis=0,
            weights=[len(part_BHWC) for part_BHWC in parts],
        )
        names = ["attention_distance.png"]
        attention_plots.plot_attention_distance(distance_LN, folder / names[0])
        if self._model.position_embedding == "learned":
            position_1TD = self._variables["params"]["pos_embedding"]
            similarity_TT = position_similarity(
                position_1TD, has_class_token=self._has_class_token
            )
            names.append("position_similarity.png")
            attention_plots.plot_position_similarity(
                np.asarray(similarity_TT), self._grid, folder / names[1]
            )
        return names


class ResNetExplainer:
    """Draws Grad-CAM of a trained ResNet."""

    def __init__(self, trained: TrainedModel):
        """Compile what is drawn."""
        self._task, self._variables = require_images(trained), trained.variables
        task, model = self._task, trained.model

        def explain(variables: Any, image_BHWC: jax.Array) -> Any:
            image_BHWC = task.normalize(image_BHWC)
            probability_BY = jax.nn.softmax(model.apply(variables, image_BHWC))  # type: ignore
            label_B = probability_BY.argmax(axis=-1)
            return probability_BY, grad_cam(model, variables, image_BHWC, label_B)  # type: ignore

        self._explain = compiler.fast_jit(explain)

    def draw_image(self, image_HWC: np.ndarray, path: pathlib.Path) -> None:
        """Draw an image, its prediction, and where the likeliest class was found."""
        outputs = self._explain(self._variables, jnp.asarray(image_HWC[None]))
        (probability_Y,), (map_HW,) = map(np.asarray, outputs)
        attention_plots.plot_explanation(
            image_HWC,
            probability_Y,
            self._task.class_names,
            {"Grad-CAM": map_HW},
            path,
            patch_size=None,
        )

    def draw_model(self, folder: pathlib.Path, image_BHWC: np.ndarray) -> list[str]:
        """Draw nothing more: there are no positions or attention."""
        del folder, image_BHWC
        return []
