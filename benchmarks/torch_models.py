"""The models in plain PyTorch, for benchmarks and parity tests."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Arguments of PyTorch's layers that make them the ViT authors'.
VIT_LAYER: dict[str, Any] = {
    "dropout": 0.0,
    "activation": lambda x: F.gelu(x, approximate="tanh"),
    "layer_norm_eps": 1e-6,
    "batch_first": True,
    "norm_first": True,
}


class ViT(nn.Module):
    """Vision Transformer whose patch embedding is a convolution."""

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        num_classes: int,
        patch_size: int,
        width: int,
        depth: int,
        num_heads: int,
        pool: str = "cls",
        representation_size: int | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        image_height, image_width, channels = image_shape
        num_tokens = (image_height // patch_size) * (image_width // patch_size)
        self.pool = pool
        if pool == "cls":
            self.cls = nn.Parameter(torch.zeros(1, 1, width))
            num_tokens += 1
        self.pos_embedding = nn.Parameter(torch.zeros(1, num_tokens, width))
        self.embedding = nn.Conv2d(channels, width, patch_size, stride=patch_size)
        layer: dict[str, Any] = VIT_LAYER | {"dropout": dropout}
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(width, num_heads, 4 * width, **layer),
            depth,
            norm=nn.LayerNorm(width, eps=1e-6),
            enable_nested_tensor=False,
        )
        if representation_size is not None:
            self.pre_logits = nn.Linear(width, representation_size)
        self.head = nn.Linear(representation_size or width, num_classes)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        x_BTD = self.embedding(image_BCHW).flatten(2).transpose(1, 2)
        if self.pool == "cls":
            cls_B1D = self.cls.expand(len(x_BTD), -1, -1)
            x_BTD = torch.cat([cls_B1D, x_BTD], dim=1)
        x_BTD = x_BTD + self.pos_embedding
        x_BTD = self.encoder(x_BTD)
        x_BD = x_BTD[:, 0] if self.pool == "cls" else x_BTD.mean(dim=1)
        if hasattr(self, "pre_logits"):
            x_BD = torch.tanh(self.pre_logits(x_BD))
        return self.head(x_BD)


def _downsample(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    """The projection of the shortcut; none where the shape stays."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False),
        nn.BatchNorm2d(outputs),
    )


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, features: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, features, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)
        self.downsample = _downsample(inputs, features, stride)
        self.relu = nn.ReLU()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW = self.relu(self.bn1(self.conv1(x_BCHW)))
        y_BCHW = self.bn2(self.conv2(y_BCHW))
        shortcut = x_BCHW if self.downsample is None else self.downsample(x_BCHW)
        return self.relu(y_BCHW + shortcut)


class BottleneckBlock(nn.Module):
    """1×1, 3×3 and 1×1 convolution and a shortcut; the 3×3 one has the stride."""

    expansion = 4

    def __init__(self, inputs: int, features: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, features, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)
        self.conv3 = nn.Conv2d(features, 4 * features, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * features)
        self.downsample = _downsample(inputs, 4 * features, stride)
        self.relu = nn.ReLU()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW = self.relu(self.bn1(self.conv1(x_BCHW)))
        y_BCHW = self.relu(self.bn2(self.conv2(y_BCHW)))
        y_BCHW = self.bn3(self.conv3(y_BCHW))
        shortcut = x_BCHW if self.downsample is None else self.downsample(x_BCHW)
        return self.relu(y_BCHW + shortcut)


BLOCKS = {"BasicBlock": BasicBlock, "BottleneckBlock": BottleneckBlock}


class ResNet(nn.Module):
    """Residual network with either stem; parameters are named as in torchvision."""

    def __init__(
        self,
        *,
        channels: int,
        num_classes: int,
        stage_sizes: tuple[int, ...],
        block: str,
        stem: str,
        width: int,
    ):
        super().__init__()
        if stem == "small":
            self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            self.maxpool = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(channels, width, 7, 2, padding=3, bias=False)
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.num_stages = len(stage_sizes)
        block_type = BLOCKS[block]
        inputs = width
        for stage, num_blocks in enumerate(stage_sizes, start=1):
            features = width * 2 ** (stage - 1)
            blocks = []
            for index in range(num_blocks):
                stride = 2 if stage > 1 and index == 0 else 1
                blocks.append(block_type(inputs, features, stride))
                inputs = features * block_type.expansion
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, num_classes)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        x_BCHW = self.maxpool(self.relu(self.bn1(self.conv1(image_BCHW))))
        for stage in range(1, self.num_stages + 1):
            x_BCHW = getattr(self, f"layer{stage}")(x_BCHW)
        return self.fc(x_BCHW.mean(dim=(2, 3)))
