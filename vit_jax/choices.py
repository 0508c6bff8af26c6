"""What the fields of a ViT may be, and what the choices stand for."""

import functools
from typing import Literal

import flax.linen as nn

Stem = Literal["patches", "conv"]
Pool = Literal["cls", "mean", "sequence", "map"]
PositionEmbedding = Literal["learned", "sincos2d", "rope"] | None
Activation = Literal["gelu_tanh", "gelu", "relu"]
Initialization = Literal["xavier", "authors"]

ACTIVATIONS = {
    "gelu_tanh": nn.gelu,
    "gelu": functools.partial(nn.gelu, approximate=False),
    "relu": nn.relu,
}

# Kernel of the embedding, biases of the MLPs, kernel of the head.
_xavier = nn.initializers.xavier_uniform()
INITIALIZATIONS = {
    "xavier": (_xavier, nn.initializers.zeros, _xavier),
    "authors": (
        nn.initializers.lecun_normal(),
        nn.initializers.normal(1e-6),
        nn.initializers.zeros,
    ),
}
