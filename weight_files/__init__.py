"""Files of weights, as PyTorch, Hugging Face and the ViT authors write them.

`vit_jax.weights` and `resnet_jax.weights` turn what is read here into their models.
"""

from weight_files.folders import write_huggingface, write_timm
from weight_files.pretrained import (
    Pretrained,
    adapt_channels,
    check_variables,
    fit_to_model,
    without_other_head,
)
from weight_files.read import Source, Weights, open_source
from weight_files.table import (
    Entry,
    convolution,
    dense,
    fused,
    norm,
    renamed,
    to_ours,
    to_theirs,
)
from weight_files.write import write_npz

__all__ = [
    "Entry",
    "Pretrained",
    "Source",
    "Weights",
    "adapt_channels",
    "check_variables",
    "convolution",
    "dense",
    "fit_to_model",
    "fused",
    "norm",
    "open_source",
    "renamed",
    "to_ours",
    "to_theirs",
    "without_other_head",
    "write_huggingface",
    "write_npz",
    "write_timm",
]
