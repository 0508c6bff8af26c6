"""Read and write the weights of ViTs: the authors', timm's, Hugging Face's, PyTorch's.

`load` finds out what a file or folder holds; `save` writes it for others to open; `fit`
prepares it for other images or classes.
"""

from vit_jax.weights.fit import fit
from vit_jax.weights.load import FORMATS, load
from vit_jax.weights.position import resize_patch_embedding, resize_position_embedding
from vit_jax.weights.save import save
from vit_jax.weights.scan import stack_blocks, unstack_blocks
from vit_jax.weights.torch_transformer import (
    load_encoder,
    load_transformer,
    transformer_state,
)
from weight_files import Pretrained

__all__ = [
    "FORMATS",
    "Pretrained",
    "fit",
    "load",
    "load_encoder",
    "load_transformer",
    "resize_patch_embedding",
    "resize_position_embedding",
    "save",
    "stack_blocks",
    "transformer_state",
    "unstack_blocks",
]
