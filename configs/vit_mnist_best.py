"""A ViT for MNIST with a convolutional stem, 509,195 parameters, made for accuracy.

    python train.py --config configs/vit_mnist_best.py

22 epochs on all 60,000 images, without validation: 99.53 % test accuracy (seed 0, on
two CPU cores).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "model": {
                "name": "vit",
                "stem": "conv",
                "patch_size": 4,
                "width": 96,
                "depth": 4,
                "num_heads": 4,
                "pool": "sequence",
                "stochastic_depth_rate": 0.1,
            },
            "dataset": {
                "name": "mnist",
                "train_split": "train",
                "val_split": None,
            },
            "augment": {"rotation": 15.0, "scaling": 0.15, "shear": 10.0, "shift": 0.1},
            "optimizer": {
                "name": "adamw",
                "learning_rate": 2e-3,
                "schedule": "cosine",
                "warmup_epochs": 1,
                "weight_decay": 0.05,
            },
            "batch_size": 128,
            "num_epochs": 22,
            "label_smoothing": 0.1,
            "dtype": "auto",
        }
    )
