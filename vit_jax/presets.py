"""The Vision Transformers of the papers, initialised as by their authors' code.

References: B and L: arXiv:2010.11929, table 1; Ti and S: "How to train your ViT?",
arXiv:2106.10270.
"""

import functools

from vit_jax.vit import ViT

_preset = functools.partial(ViT, initialization="authors", position_std=0.02)
ViT_Ti16 = functools.partial(_preset, patch_size=16, width=192, depth=12, num_heads=3)
ViT_S16 = functools.partial(_preset, patch_size=16, width=384, depth=12, num_heads=6)
ViT_S32 = functools.partial(_preset, patch_size=32, width=384, depth=12, num_heads=6)
ViT_B16 = functools.partial(_preset, patch_size=16, width=768, depth=12, num_heads=12)
ViT_B32 = functools.partial(_preset, patch_size=32, width=768, depth=12, num_heads=12)
ViT_L16 = functools.partial(_preset, patch_size=16, width=1024, depth=24, num_heads=16)
ViT_H14 = functools.partial(_preset, patch_size=14, width=1280, depth=32, num_heads=16)
