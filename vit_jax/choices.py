"""Allowed values of a ViT's fields; activations and initialisers by name."""

import functools
from typing import Literal, NamedTuple

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


class Initializers(NamedTuple):
    """Initialisers in which the choices of `ViT.initialization` differ."""

    embedding_kernel: nn.initializers.Initializer
    mlp_bias: nn.initializers.Initializer
    head_kernel: nn.initializers.Initializer


_xavier = nn.initializers.xavier_uniform()
INITIALIZATIONS = {
    "xavier": Initializers(_xavier, nn.initializers.zeros, _xavier),
    "authors": Initializers(
        embedding_kernel=nn.initializers.lecun_normal(),
        mlp_bias=nn.initializers.normal(1e-6),
        head_kernel=nn.initializers.zeros,
    ),
}
