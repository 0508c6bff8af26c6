"""A small ViT on scikit-learn's 8×8 digits: real data, no download, 20 s.

    python train.py --config configs/vit_digits.py

Test accuracy 98.89 ± 0.56 % (mean and standard deviation of 3 seeds: 99.44, 98.89,
98.33); the whole command took 20 s on two cores of an AMD EPYC (AVX-512).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "model": {
                "name": "vit",
                "patch_size": 2,
                "width": 64,
                "depth": 3,
                "num_heads": 4,
            },
            "dataset": {"name": "digits"},
            "augment": {"crop_padding": 1},
            "optimizer": {
                "name": "adamw",
                "learning_rate": 3e-3,
                "schedule": "cosine",
                "warmup_epochs": 5,
                "weight_decay": 0.1,
            },
            "batch_size": 64,
            "num_epochs": 50,
            "label_smoothing": 0.1,
            "checkpoint": {"every_epochs": 10},
        }
    )
