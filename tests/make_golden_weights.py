"""Record models of other libraries: python -m tests.make_golden_weights.

Each file holds the arrays as the library names them, an image, the logits, and the
gradient of Σ cotangent · logits. It needs torch, timm, transformers and torchvision.
"""

import json
import pathlib
import tempfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import timm
import torch
import torchvision
import transformers

from tests.weights import cases

Module = Any


def make_timm(arguments: dict[str, Any]) -> Module:
    """Make timm's VisionTransformer."""
    return timm.models.vision_transformer.VisionTransformer(**arguments)


def make_torchvision_vit(arguments: dict[str, Any]) -> Module:
    """Make torchvision's VisionTransformer."""
    return torchvision.models.VisionTransformer(**arguments)


def make_huggingface_vit(arguments: dict[str, Any]) -> Module:
    """Make Hugging Face's ViT."""
    config = transformers.ViTConfig(**arguments)
    return transformers.ViTForImageClassification(config)


def make_huggingface_resnet(arguments: dict[str, Any]) -> Module:
    """Make Hugging Face's ResNet."""
    config = transformers.ResNetConfig(**arguments)
    return transformers.ResNetForImageClassification(config)


def make_torchvision_resnet(arguments: dict[str, Any]) -> Module:
    """Make torchvision's ResNet."""
    block = getattr(torchvision.models.resnet, arguments["block"])
    return torchvision.models.ResNet(**(arguments | {"block": block}))


MAKERS: dict[str, Callable[[dict[str, Any]], Module]] = {
    "timm": make_timm,
    "torchvision_vit": make_torchvision_vit,
    "huggingface_vit": make_huggingface_vit,
    "huggingface_resnet": make_huggingface_resnet,
    "torchvision_resnet": make_torchvision_resnet,
}


def draw(module: Module, seed: int) -> Module:
    """Give all parameters and statistics random values."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if not tensor.is_floating_point():
                continue
            # So that features stay of order 1, and rounding errors small, as trained.
            fan_in = max(np.prod(tensor.shape[1:]), 25)
            value = rng.normal(size=tensor.shape) / fan_in**0.5
            if "running_var" in name:
                value = 0.5 + rng.random(tensor.shape)
            elif tensor.ndim == 1 and name.endswith("weight"):
                value = 1 + value
            tensor.copy_(torch.as_tensor(value))
    return module.eval()


def state_of(module: Module) -> dict[str, np.ndarray]:
    """Read the state dict, as files have it."""
    if not hasattr(module, "save_pretrained"):
        state = module.state_dict()
        return {name: tensor.numpy().copy() for name, tensor in state.items()}
    from safetensors.numpy import load_file

    with tempfile.TemporaryDirectory() as folder:
        module.save_pretrained(folder)
        return load_file(pathlib.Path(folder) / "model.safetensors")


def record(library: str, arguments: dict[str, Any], image_shape: tuple[int, ...]):
    """Record a model."""
    seed = zlib.crc32(json.dumps([library, arguments], default=str).encode())
    module = draw(MAKERS[library](arguments), seed)
    rng = np.random.default_rng(seed)
    image_BHWC = rng.normal(size=(2, *image_shape)).astype(np.float32)
    image = torch.as_tensor(image_BHWC.transpose(0, 3, 1, 2)).requires_grad_()
    logits = module(image)
    logits = getattr(logits, "logits", logits)
    cotangent = rng.normal(size=logits.shape).astype(np.float32)
    (logits * torch.as_tensor(cotangent)).sum().backward()
    # PyTorch has the names of a state dict in memory, transformers others in files.
    state = state_of(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.grad)
    gradients = state_of(module)
    return {
        "image_BHWC": image_BHWC,
        "logits": logits.detach().numpy(),
        "cotangent": cotangent,
        "grad_image_BHWC": image.grad.numpy().transpose(0, 2, 3, 1),
        **{f"state/{name}": array for name, array in state.items()},
        **{
            f"grad/{name}": array
            for name, array in gradients.items()
            if "running_" not in name and "num_batches" not in name
        },
    }


def main() -> None:
    """Write all files."""
    for name, (library, arguments, image_shape) in cases.GOLDEN.items():
        recorded = record(library, arguments, image_shape)
        np.savez_compressed(cases.FOLDER / f"weights_{name}.npz", **recorded)
        print(name)


if __name__ == "__main__":
    main()
