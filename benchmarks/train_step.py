"""How fast is a training step, against PyTorch doing the same?"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import ours
from benchmarks.timing import Timing, take_turns

_VIT_MNIST = {
    "model.name": "vit",
    "model.patch_size": 7,
    "model.width": 128,
    "model.depth": 3,
    "model.num_heads": 4,
    "model.dropout_rate": 0.1,
}
_VIT_TINY = _VIT_MNIST | {"model.width": 16, "model.depth": 1}

# Case → fields of the config, image shape, number of classes, batch, steps a turn.
CASES: dict[str, tuple[dict[str, Any], tuple[int, int, int], int, int, int]] = {
    "ViT, MNIST, width 128": (_VIT_MNIST, (28, 28, 1), 10, 128, 16),
    "ViT-S/16, 224 px": ({"model.name": "vit_s16"}, (224, 224, 3), 1000, 8, 3),
    "ResNet-18, CIFAR-10": ({"model.name": "resnet18"}, (32, 32, 3), 10, 128, 1),
}
SMALL = {
    "ViT, tiny": (_VIT_TINY, (28, 28, 1), 10, 8, 2),
    "ResNet-18, width 4": (
        {"model.name": "resnet18", "model.width": 4},
        (16, 16, 3),
        10,
        8,
        1,
    ),
}


def measure(*, small: bool, rounds: int) -> Iterator[Timing]:
    """Time a step of each model, in float32 and bfloat16."""
    for case, setting in (SMALL if small else CASES).items():
        for dtype in ("float32",) if small else ("float32", "bfloat16"):
            *_, batch_size, num_steps = setting
            yield from take_turns(
                f"{case}, batch {batch_size}, {dtype}",
                _programs(setting, dtype, small=small),
                rounds=rounds,
                images=batch_size,
                units=num_steps,
                warm_up=2,
            )


def _programs(setting: tuple, dtype: str, *, small: bool) -> dict[str, Callable]:
    """The programs to compare."""
    import torch

    from benchmarks import peers

    fields, image_shape, num_classes, batch_size, num_steps = setting
    experiment = ours.make_experiment(
        fields
        | {
            "batch_size": batch_size,
            "dtype": dtype,
            "optimizer.weight_decay": 0.05,
            "optimizer.schedule": "constant",
        },
        image_shape=image_shape,
        num_classes=num_classes,
        num_examples=batch_size * 8,
    )
    programs = {"ours": ours.make_steps(experiment, num_steps)}
    make = functools.partial(
        peers.make_steps,
        image_shape=image_shape,
        num_classes=num_classes,
        batch_size=batch_size,
        num_steps=num_steps,
        make_optimizer=functools.partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.05),
        dtype=getattr(torch, dtype),
    )
    is_resnet = hasattr(experiment.model, "stage_sizes")
    variants: dict[str, dict[str, bool]] = {"PyTorch eager": {}}
    if is_resnet:
        variants["PyTorch eager, channels last"] = {"channels_last": True}
    if not small:
        variants["PyTorch compiled"] = {
            "is_compiled": True,
            "channels_last": is_resnet,
        }
    for name, options in variants.items():
        torch.manual_seed(0)
        programs[name] = make(_peer(experiment, image_shape, num_classes), **options)
    return programs


def _peer(experiment: Any, image_shape: tuple, num_classes: int) -> Any:
    """The same model in PyTorch."""
    from benchmarks import peers

    model = experiment.model
    if hasattr(model, "stage_sizes"):
        return peers.ResNet(
            num_classes=num_classes,
            stage_sizes=model.stage_sizes,
            width=model.width,
            channels=image_shape[-1],
            block="BasicBlock",
            stem="small",
        )
    return peers.ViT(
        image_shape=image_shape,
        num_classes=num_classes,
        patch_size=model.patch_size,
        width=model.width,
        depth=model.depth,
        num_heads=model.num_heads,
        dropout=model.dropout_rate,
    )
