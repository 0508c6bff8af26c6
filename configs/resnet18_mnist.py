"""ResNet-18 on MNIST: the small-image stem takes 28×28×1 as it is.

    python train.py --config configs/resnet18_mnist.py

Made for a GPU or TPU. To try it on a CPU, add `--workdir runs/try
--config.num_steps=20 --config.optimizer.warmup_epochs=0`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "model": {"name": "resnet18"},
            "dataset": {
                "name": "mnist",
                "train_split": "train[:55000]",
                "val_split": "train[55000:]",
            },
            "augment": {"crop_padding": 2},
            "optimizer": {
                "name": "sgd",
                "learning_rate": 0.05,
                "momentum": 0.9,
                "schedule": "cosine",
                "warmup_epochs": 0.5,
                "weight_decay": 5e-4,
            },
            "batch_size": 128,
            "num_epochs": 5,
        }
    )
