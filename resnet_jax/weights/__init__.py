"""Read and write the weights of ResNets: PyTorch's, timm's and Hugging Face's.

`load` finds out what a file or folder holds; `save` writes it for others to open; `fit`
prepares it for other images or classes.
"""

from resnet_jax.weights.fit import fit
from resnet_jax.weights.load import is_resnet, load
from resnet_jax.weights.save import save
from weight_files import Pretrained

__all__ = ["Pretrained", "fit", "is_resnet", "load", "save"]
