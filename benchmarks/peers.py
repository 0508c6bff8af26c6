"""PyTorch's side: the models that the parity tests hold against ours."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from tests.torch_models import ResNet, ViT  # re-exported

__all__ = ["ResNet", "ViT", "make_steps"]


def make_steps(
    model: torch.nn.Module,
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    batch_size: int,
    num_steps: int,
    make_optimizer: Callable[..., torch.optim.Optimizer],
    is_compiled: bool = False,
    channels_last: bool = False,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Callable[[], None]:
    """Make a program that trains on one batch, for some steps each time it is called.

    Args:
        model: in float32.
        image_shape: height, width, channels.
        num_classes: number of classes.
        batch_size: number of images.
        num_steps: number of steps a call.
        make_optimizer: parameters → optimiser.
        is_compiled: whether to use torch.compile.
        channels_last: whether images and kernels lie in memory channel by channel.
        dtype: of the computation; bfloat16 by autocast.
        device: "cpu" or "cuda".
    """
    height, width, channels = image_shape
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(batch_size, channels, height, width, generator=generator)
    image = image.to(device)
    label = torch.randint(num_classes, (batch_size,), generator=generator).to(device)
    model = model.to(device).train()
    if channels_last:
        image = image.to(memory_format=torch.channels_last)
        model = model.to(memory_format=torch.channels_last)  # type: ignore
    optimizer = make_optimizer(model.parameters())
    forward: Any = torch.compile(model) if is_compiled else model
    is_mixed = dtype != torch.float32

    def take_steps() -> None:
        for _ in range(num_steps):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device, dtype, enabled=is_mixed):
                loss = F.cross_entropy(forward(image), label)
            loss.backward()
            optimizer.step()
        loss.item()

    return take_steps
