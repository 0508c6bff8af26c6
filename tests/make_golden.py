"""Record what PyTorch computes, for the parity tests: python -m tests.make_golden.

Weights and inputs come from numpy's generator, seeded by the case's name, so that they
do not depend on PyTorch's initialisation.
"""

import functools
import itertools
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

if __name__ == "__main__":  # so that it also runs as a file
    sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import torch_models
from tests import parity

Record = parity.Record

# ReLU's derivative jumps at zero. An input that is nearer to it than float32 rounds
# may fall on either side, and correct gradients then differ by far more than rounding:
# such weights and images are drawn anew.
RELU_MARGIN = 5e-6


def record(name: str) -> Record:
    """Record one case, golden or live only."""
    torch.set_num_threads(1)  # sums in the same order every time
    [(make, case)] = [(make, cases[name]) for cases, make in MAKERS if name in cases]
    for attempt in itertools.count():
        rng = np.random.default_rng([zlib.crc32(name.encode()), attempt])
        recorded = make(rng, **case)
        if recorded.pop("relu_margin", np.inf) > RELU_MARGIN:
            return recorded
    raise AssertionError  # the loop has no end


def attention(rng: np.random.Generator, mask: str | None) -> Record:
    """Record `scaled_dot_product_attention`."""
    tokens = {
        "query": _normal(rng, 2, 3, 5, 8),
        "key": _normal(rng, 2, 3, 7, 8),
        "value": _normal(rng, 2, 3, 7, 6),
    }
    allowed = _mask(rng, mask, (2, 3, 5, 7))

    def forward(module, query, key, value):
        return {"out": F.scaled_dot_product_attention(query, key, value, allowed)}

    return _record(rng, nn.Identity(), forward, tokens) | _input(mask=allowed)


def multi_head_attention(
    rng: np.random.Generator, cross: bool, mask: str | None
) -> Record:
    """Record `MultiheadAttention` and its weights."""
    tokens = {"query": _normal(rng, 2, 5, 16)}
    if cross:
        tokens["memory"] = _normal(rng, 2, 7, 16)
    allowed = _mask(rng, mask, (2, 1, 5, 7 if cross else 5))

    def forward(module, query, memory=None):
        memory = query if memory is None else memory
        masks = {}
        if mask == "causal":
            masks["attn_mask"] = ~allowed
        elif mask == "padding":
            masks["key_padding_mask"] = ~allowed[:, 0, 0]
        out, weights = module(
            query, memory, memory, average_attn_weights=False, **masks
        )
        return {"out": out, "weights": weights}

    module = nn.MultiheadAttention(16, 4, batch_first=True)
    return _record(rng, module, forward, tokens) | _input(mask=allowed)


def encoder_block(rng: np.random.Generator, norm: str, mask: str | None) -> Record:
    """Record `TransformerEncoderLayer`: pre-norm as in ViT, post-norm as by default."""
    allowed = _mask(rng, mask, (2, 1, 5, 5))

    def forward(module, x):
        if mask == "padding":
            return {"out": module(x, src_key_padding_mask=~allowed[:, 0, 0])}
        return {"out": module(x, None if allowed is None else ~allowed)}

    module = nn.TransformerEncoderLayer(16, 4, 24, **_layer(norm))
    tokens = {"x": _normal(rng, 2, 5, 16)}
    return _record(rng, module, forward, tokens) | _input(mask=allowed)


def decoder_block(rng: np.random.Generator, norm: str, masks: dict[str, str]) -> Record:
    """Record `TransformerDecoderLayer`."""
    allowed = _masks(rng, masks)

    def forward(module, x, memory):
        return {"out": module(x, memory, **_torch_masks(allowed))}

    module = nn.TransformerDecoderLayer(8, 2, 12, **_layer(norm))
    tokens = {"x": _normal(rng, 2, 5, 8), "memory": _normal(rng, 2, 7, 8)}
    return _record(rng, module, forward, tokens) | _input(**allowed)


def transformer(
    rng: np.random.Generator,
    norm: str,
    masks: dict[str, str],
    width: int,
    num_heads: int,
    mlp_dim: int,
    depth: int,
) -> Record:
    """Record `Transformer`."""
    allowed = _masks(rng, masks)

    def forward(module, source, target):
        return {"out": module(source, target, **_torch_masks(allowed))}

    with warnings.catch_warnings():  # of a fast path that pre-norm cannot take
        warnings.filterwarnings("ignore", "enable_nested_tensor", UserWarning)
        module = nn.Transformer(width, num_heads, depth, depth, mlp_dim, **_layer(norm))
    num_source = 7 if masks else 5
    tokens = {
        "source": _normal(rng, 2, num_source, width),
        "target": _normal(rng, 2, 5, width),
    }
    return _record(rng, module, forward, tokens) | _input(**allowed)


def _layer(norm: str) -> dict[str, Any]:
    """Choose the arguments of a layer: pre-norm as in ViT, post-norm by default."""
    if norm == "pre":
        return torch_models.VIT_LAYER
    return {"dropout": 0.0, "activation": nn.ReLU(), "batch_first": True}


def _masks(rng: np.random.Generator, kinds: dict[str, str]) -> dict[str, Tensor]:
    """Make the masks of five target and seven source tokens, by name."""
    shapes = {"source": (7, 7), "target": (5, 5), "memory": (5, 7)}
    return {
        f"{name}_mask": _mask(rng, kind, shapes[name.removesuffix("_padding")])
        for name, kind in kinds.items()
    }


def _torch_masks(masks: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert to PyTorch's arguments; its masks are True where attention is barred."""
    arguments = {}
    for name, allowed in masks.items():
        name = name.replace("source", "src").replace("target", "tgt")
        if name.endswith("_padding_mask"):
            name = name.replace("_padding_mask", "_key_padding_mask")
            allowed = allowed[:, 0, 0]
        arguments[name] = ~allowed
    return arguments


def vit(rng: np.random.Generator, image_shape: tuple, **model: Any) -> Record:
    """Record the Vision Transformer."""
    module = torch_models.ViT(image_shape=image_shape, **model)
    image = {"image": _normal(rng, 3, *image_shape)}
    return _record(rng, module, _on_images, image)


def conv_stem(rng: np.random.Generator, width: int, patch_size: int) -> Record:
    """Record the stem of a Compact Convolutional Transformer."""
    assert patch_size == 4
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 64), (64, width)):
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        layers += [convolution, nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    image = {"image": _normal(rng, 1, 8, 12, 3)}
    return _record(rng, nn.Sequential(*layers), _on_images, image)


def pool(rng: np.random.Generator, kind: str) -> Record:
    """Record a pooling of five tokens."""
    module = {"sequence": SequencePool, "map": AttentionPool}[kind]()
    tokens = {"x": _normal(rng, 2, 5, 16)}
    return _record(rng, module, lambda module, x: {"out": module(x)}, tokens)


class SequencePool(nn.Module):
    """Weights from a linear layer, softmax over the tokens, weighted sum."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return (self.score(x).softmax(1).transpose(1, 2) @ x).squeeze(1)


class AttentionPool(nn.Module):
    """Attention from a learned query, then an MLP with LayerNorm and residual."""

    def __init__(self) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.zeros(1, 1, 16))
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.norm = nn.LayerNorm(16, eps=1e-6)
        self.linear1, self.linear2 = nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.attention(self.probe.expand(len(x), -1, -1), x, x)
        hidden = F.gelu(self.linear1(self.norm(y)), approximate="tanh")
        return (y + self.linear2(hidden)).squeeze(1)


def resnet_block(
    rng: np.random.Generator, block: str, inputs: int, features: int, stride: int
) -> Record:
    """Record a residual block on a feature map with an odd and an even side."""
    module = torch_models.BLOCKS[block](inputs, features, stride)
    return _record_with_statistics(rng, module, _normal(rng, 3, 7, 6, inputs))


def resnet(rng: np.random.Generator, image_shape: tuple, **model: Any) -> Record:
    """Record a residual network."""
    module = torch_models.ResNet(channels=image_shape[-1], **model)
    return _record_with_statistics(rng, module, _normal(rng, 3, *image_shape))


def _record(
    rng: np.random.Generator,
    module: nn.Module,
    forward: Callable[..., dict[str, Tensor]],
    inputs: dict[str, np.ndarray],
) -> Record:
    """Record weights, inputs, outputs and all gradients; module in training mode."""
    _randomise(module, rng)
    tensors = {
        name: torch.tensor(array, requires_grad=True) for name, array in inputs.items()
    }
    state = {
        f"state/{name}": tensor.detach().numpy().copy()
        for name, tensor in module.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    margins = [np.inf]

    def measure_margin(relu, inputs):
        if relu.training:  # only then there are gradients
            margins.append(inputs[0].detach().abs().min().item())

    for layer in module.modules():
        if isinstance(layer, nn.ReLU):
            layer.register_forward_pre_hook(measure_margin)
    outputs = forward(module, **tensors)
    out = next(iter(outputs.values()))
    cotangent = _normal(rng, *out.shape) / np.float32(len(out))
    (out * torch.tensor(cotangent)).sum().backward()
    return {
        **state,
        **_input(**inputs),
        "cotangent": cotangent,
        "relu_margin": min(margins),
        **{f"output/{name}": x.detach().numpy() for name, x in outputs.items()},
        **{f"grad_input/{name}": x.grad.numpy() for name, x in tensors.items()},
        **{f"grad/{name}": x.grad.numpy() for name, x in module.named_parameters()},
    }


def _record_with_statistics(
    rng: np.random.Generator, module: nn.Module, image: np.ndarray
) -> Record:
    """Record a module with BatchNorm: evaluation, then one training step."""
    eval_output, counts = {}, {}

    def count(name, norm, inputs):
        values = inputs[0].numel() // norm.num_features
        counts[f"count/{name}"] = np.int32(values)

    def forward(module, image):
        module.eval()
        with torch.no_grad():
            eval_output["output/eval"] = _on_images(module, image)["out"].numpy()
        module.train()
        for name, layer in module.named_modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.register_forward_pre_hook(functools.partial(count, name))
        return _on_images(module, image)

    recorded = _record(rng, module, forward, {"image": image})
    after = {
        f"state_after/{name}": buffer.numpy()
        for name, buffer in module.named_buffers()
        if not name.endswith("num_batches_tracked")
    }
    return recorded | eval_output | after | counts


def _on_images(module: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """Apply to channels-last images; feature maps come back channels last too."""
    # Without a copy in its own layout torch 2.13's CPU convolution of three or four
    # channels writes beyond its buffers in the backward pass: wrong gradients, crashes.
    out = module(image.permute(0, 3, 1, 2).contiguous())
    return {"out": out.permute(0, 2, 3, 1) if out.ndim == 4 else out}


def _randomise(module: nn.Module, rng: np.random.Generator) -> None:
    """Give every parameter and statistic a value that none of them has by default."""
    for name, tensor in module.state_dict(keep_vars=True).items():
        if name.endswith("num_batches_tracked"):
            continue
        x = _normal(rng, *tensor.shape)
        if name.endswith("running_var"):
            x = np.exp(0.3 * x)
        elif tensor.ndim == 1 and name.endswith("weight"):  # of a norm
            x = 1 + 0.2 * x
        elif tensor.ndim == 1:
            x = 0.2 * x
        elif name.endswith("weight"):
            x = x / np.sqrt(np.prod(tensor.shape[1:]))
        tensor.data.copy_(torch.tensor(x))


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def _mask(
    rng: np.random.Generator, kind: str | None, shape: tuple[int, ...]
) -> Tensor | None:
    """Make a mask that leaves every query something to attend to."""
    if kind is None:
        return None
    if kind == "causal":
        return torch.ones(shape[-2:], dtype=torch.bool).tril()
    if kind == "padding":
        lengths_B = torch.tensor([shape[-1], shape[-1] - 3])
        return (torch.arange(shape[-1]) < lengths_B[:, None])[:, None, None]
    mask = rng.random(shape) < 0.5
    mask[..., 0] = True
    return torch.tensor(mask)


def _input(**arrays: np.ndarray | Tensor | None) -> Record:
    return {f"input/{k}": np.asarray(x) for k, x in arrays.items() if x is not None}


MAKERS: list[tuple[dict[str, dict], Callable[..., Record]]] = [
    (parity.ATTENTION, attention),
    (parity.MULTI_HEAD_ATTENTION, multi_head_attention),
    (parity.ENCODER_BLOCK, encoder_block),
    (parity.DECODER_BLOCK, decoder_block),
    (parity.TRANSFORMER, transformer),
    (parity.VIT | parity.VIT_LIVE, vit),
    (parity.CONV_STEM, conv_stem),
    (parity.POOL, pool),
    (parity.RESNET_BLOCK, resnet_block),
    (parity.RESNET | parity.RESNET_LIVE, resnet),
]


def main() -> None:
    """Write all golden files."""
    parity.GOLDEN.mkdir(exist_ok=True)
    for name in parity.GOLDEN_CASES:
        np.savez_compressed(parity.GOLDEN / f"{name}.npz", **record(name))


if __name__ == "__main__":
    main()
