"""A ViT for CIFAR-10 from scratch: patches of 4 pixels, strong augmentation.

    python train.py --config configs/vit_cifar10.py

Made for a GPU or TPU. To try it on a CPU, add `--config.num_steps=20
--config.optimizer.warmup_epochs=0`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "model": {
                "name": "vit",
                "patch_size": 4,
                "width": 384,
                "depth": 7,
                "num_heads": 12,
                "mlp_ratio": 2.0,
                "dropout_rate": 0.1,
                "embedding_dropout_rate": 0.1,
                "pool": "mean",
            },
            "dataset": {
                "name": "cifar10",
                "train_split": "train[:45000]",
                "val_split": "train[45000:]",
            },
            "augment": {
                "crop_padding": 4,
                "flip": True,
                "mixup_alpha": 0.8,
                "cutmix_alpha": 1.0,
            },
            "optimizer": {
                "name": "adamw",
                "learning_rate": 1e-3,
                "schedule": "cosine",
                "warmup_epochs": 10,
                "weight_decay": 0.05,
                "clip_norm": 1.0,
            },
            "batch_size": 128,
            "num_epochs": 200,
            "label_smoothing": 0.1,
            "checkpoint": {"every_epochs": 5},
        }
    )
