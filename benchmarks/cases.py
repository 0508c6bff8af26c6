"""The models that are measured, and tiny ones for a try."""

from typing import Any, NamedTuple

# Dropout where PyTorch's TransformerEncoderLayer has it.
VIT_MNIST = {
    "model.name": "vit",
    "model.patch_size": 7,
    "model.width": 128,
    "model.depth": 3,
    "model.num_heads": 4,
    "model.dropout_rate": 0.1,
    "model.attention_dropout_rate": 0.1,
}
_VIT_TINY = VIT_MNIST | {"model.width": 16, "model.depth": 1}
_VIT_S16 = {
    "model.name": "vit",
    "model.patch_size": 16,
    "model.width": 384,
    "model.depth": 12,
    "model.num_heads": 6,
}
_RESNET = {"model.name": "resnet18", "model.width": 64}
_RESNET_TINY = _RESNET | {"model.width": 4}


class Case(NamedTuple):
    """A model and its images.

    Attributes:
        fields: of the config.
        image_shape: height, width, channels.
        num_classes: number of classes.
        batch_size: number of images in a step.
        num_steps: number of steps in a turn.
    """

    fields: dict[str, Any]
    image_shape: tuple[int, int, int]
    num_classes: int
    batch_size: int
    num_steps: int

    @property
    def is_convolutional(self) -> bool:
        """Whether PyTorch has a choice of memory layouts."""
        return self.fields["model.name"].startswith("resnet")


CASES = {
    "ViT, MNIST, width 128": Case(VIT_MNIST, (28, 28, 1), 10, 128, 16),
    "ViT-S/16, 224 px": Case(_VIT_S16, (224, 224, 3), 1000, 8, 3),
    "ResNet-18, CIFAR-10": Case(_RESNET, (32, 32, 3), 10, 128, 3),
}
SMALL = {
    "ViT, tiny": Case(_VIT_TINY, (28, 28, 1), 10, 8, 2),
    "ResNet-18, width 4": Case(_RESNET_TINY, (16, 16, 3), 10, 8, 1),
}


def cases(*, small: bool) -> dict[str, Case]:
    """Return the cases by name, or tiny ones."""
    return SMALL if small else CASES
