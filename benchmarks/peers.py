"""PyTorch's models and training steps, to compare with."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.cases import Case
from benchmarks.torch_models import ResNet, ViT

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def make_model(case: Case) -> torch.nn.Module:
    """Make the model, with the same initial weights each time."""
    torch.manual_seed(0)
    fields = {k.removeprefix("model."): v for k, v in case.fields.items()}
    if case.is_convolutional:
        return ResNet(
            num_classes=case.num_classes,
            stage_sizes=(2, 2, 2, 2),
            width=fields["width"],
            channels=case.image_shape[-1],
            block="BasicBlock",
            stem="small",
        )
    return ViT(
        image_shape=case.image_shape,
        num_classes=case.num_classes,
        patch_size=fields["patch_size"],
        width=fields["width"],
        depth=fields["depth"],
        num_heads=fields["num_heads"],
        dropout=fields.get("dropout_rate", 0.0),
    )


def make_steps(
    case: Case,
    *,
    is_compiled: bool = False,
    channels_last: bool = False,
    dtype: torch.dtype = torch.float32,
    batches: Iterator[tuple[torch.Tensor, torch.Tensor]] | None = None,
) -> Callable[[], None]:
    """Make a program that trains for some steps each time it is called.

    Args:
        case: the model and its images.
        is_compiled: whether to use torch.compile.
        channels_last: whether images and kernels lie in memory channel by channel.
        dtype: of the computation; bfloat16 by autocast.
        batches: normalised images and labels; one random batch again and again if not
            given.
    """
    (height, width, channels), batch_size = case.image_shape, case.batch_size
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(batch_size, channels, height, width, generator=generator)
    label = torch.randint(case.num_classes, (batch_size,), generator=generator)
    image, label = image.to(DEVICE), label.to(DEVICE)
    model = make_model(case).to(DEVICE).train()
    if channels_last:
        image = image.to(memory_format=torch.channels_last)
        model = model.to(memory_format=torch.channels_last)  # type: ignore
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    forward: Any = torch.compile(model) if is_compiled else model
    is_mixed = dtype != torch.float32
    batches = itertools.repeat((image, label)) if batches is None else batches

    def take_steps() -> None:
        for image, label in itertools.islice(batches, case.num_steps):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(DEVICE, dtype, enabled=is_mixed):
                loss = F.cross_entropy(forward(image), label)
            loss.backward()
            optimizer.step()
        loss.item()

    return take_steps
