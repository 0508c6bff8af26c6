"""ResNet-18 on CIFAR-10: the customary recipe, 200 epochs of SGD.

    python train.py --config configs/resnet18_cifar10.py

Made for a GPU or TPU; `--config.num_steps=20` tries it on a CPU.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "model": {"name": "resnet18"},
            "dataset": {
                "name": "cifar10",
                "train_split": "train[:45000]",
                "val_split": "train[45000:]",
            },
            "augment": {"crop_padding": 4, "flip": True},
            "optimizer": {
                "name": "sgd",
                "learning_rate": 0.1,
                "momentum": 0.9,
                "schedule": "cosine",
                "weight_decay": 5e-4,
            },
            "batch_size": 128,
            "num_epochs": 200,
            "checkpoint": {"every_epochs": 5},
        }
    )
