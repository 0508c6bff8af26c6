"""How fast is a training step, against PyTorch doing the same?"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from benchmarks import ours
from benchmarks.timing import Timing, take_turns

# Dropout where PyTorch's TransformerEncoderLayer has it.
_VIT_MNIST = {
    "model.name": "vit",
    "model.patch_size": 7,
    "model.width": 128,
    "model.depth": 3,
    "model.num_heads": 4,
    "model.dropout_rate": 0.1,
    "model.attention_dropout_rate": 0.1,
}
_VIT_TINY = _VIT_MNIST | {"model.width": 16, "model.depth": 1}
_RESNET = {"model.name": "resnet18"}
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


CASES = {
    "ViT, MNIST, width 128": Case(_VIT_MNIST, (28, 28, 1), 10, 128, 16),
    "ViT-S/16, 224 px": Case({"model.name": "vit_s16"}, (224, 224, 3), 1000, 8, 3),
    "ResNet-18, CIFAR-10": Case(_RESNET, (32, 32, 3), 10, 128, 1),
}
SMALL = {
    "ViT, tiny": Case(_VIT_TINY, (28, 28, 1), 10, 8, 2),
    "ResNet-18, width 4": Case(_RESNET_TINY, (16, 16, 3), 10, 8, 1),
}


def measure(*, small: bool, rounds: int) -> Iterator[Timing]:
    """Time a step of each model, in float32 and bfloat16."""
    for name, case in (SMALL if small else CASES).items():
        for dtype in ("float32",) if small else ("float32", "bfloat16"):
            yield from take_turns(
                f"{name}, batch {case.batch_size}, {dtype}",
                _programs(case, dtype, small=small),
                rounds=rounds,
                images=case.batch_size,
                units=case.num_steps,
                warm_up=2,
            )


def _programs(case: Case, dtype: str, *, small: bool) -> dict[str, Callable]:
    """The programs to compare."""
    import torch

    from benchmarks import peers

    fields = {
        "batch_size": case.batch_size,
        "dtype": dtype,
        "optimizer.weight_decay": 0.05,
        "optimizer.schedule": "constant",
    }
    experiment = ours.make_experiment(
        case.fields | fields,
        image_shape=case.image_shape,
        num_classes=case.num_classes,
        num_examples=case.batch_size * 8,
    )
    programs = {"ours": ours.make_steps(experiment, case.num_steps)}
    make = functools.partial(
        peers.make_steps,
        image_shape=case.image_shape,
        num_classes=case.num_classes,
        batch_size=case.batch_size,
        num_steps=case.num_steps,
        make_optimizer=functools.partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.05),
        dtype=getattr(torch, dtype),
    )
    is_resnet = hasattr(experiment.model, "stage_sizes")
    variants: dict[str, dict[str, Any]] = {"PyTorch eager": {}}
    if is_resnet:
        variants["PyTorch eager, channels last"] = {"channels_last": True}
    if not small:
        variants["PyTorch compiled"] = {
            "is_compiled": True,
            "channels_last": is_resnet,
        }
    for name, options in variants.items():
        torch.manual_seed(0)
        programs[name] = make(_peer(experiment.model, case), **options)
    return programs


def _peer(model: Any, case: Case) -> Any:
    """The same model in PyTorch."""
    from benchmarks import peers

    if hasattr(model, "stage_sizes"):
        return peers.ResNet(
            num_classes=case.num_classes,
            stage_sizes=model.stage_sizes,
            width=model.width,
            channels=case.image_shape[-1],
            block="BasicBlock",
            stem="small",
        )
    return peers.ViT(
        image_shape=case.image_shape,
        num_classes=case.num_classes,
        patch_size=model.patch_size,
        width=model.width,
        depth=model.depth,
        num_heads=model.num_heads,
        dropout=model.dropout_rate,
    )
