"""Fine-tune a pretrained ViT on CIFAR-10, its images resized to 224 pixels.

    python train.py --config configs/finetune_vit_cifar10.py

The argument names other weights of a ViT-S/16 in timm's layout, for example a file:

    python train.py --config configs/finetune_vit_cifar10.py:vit_small.safetensors

It needs the extra [hub], and a GPU or TPU. The images are 8.4 GiB; a device with less
than 21 GiB of free memory gets them batch by batch.
It has not been run yet, so that nothing is claimed.
"""

from ml_collections import ConfigDict

_SOURCE = "hf://timm/vit_small_patch16_224.augreg_in21k"


def get_config(source: str = _SOURCE) -> ConfigDict:
    half = (0.5, 0.5, 0.5)
    return ConfigDict(
        {
            # timm computes GELU exactly, the authors by its tanh form.
            "model": {
                "name": "vit_s16",
                "activation": "gelu",
                "stochastic_depth_rate": 0.1,
            },
            "init_from": source,
            "dataset": {
                "name": "cifar10",
                "image_size": 224,
                "mean": half,
                "std": half,
            },
            "augment": {"flip": "random"},
            "optimizer": {
                "name": "adamw",
                "learning_rate": 3e-4,
                "layer_decay": 0.75,
                "schedule": "cosine",
                "warmup_epochs": 0.5,
                "weight_decay": 0.05,
                "clip_norm": 1.0,
            },
            "batch_size": 256,
            "num_epochs": 5,
            "label_smoothing": 0.1,
            "dtype": "bfloat16",
        }
    )
