"""Read and write the weights of ResNets: PyTorch's, timm's and Hugging Face's.

`load` finds out what a file or folder holds; `save` writes it for others to open.
"""

from resnet_jax.weights.load import is_resnet, load
from resnet_jax.weights.save import save

__all__ = ["is_resnet", "load", "save"]
