"""ResNet-20 on CIFAR-10: the ResNet paper's recipe (arXiv:1512.03385, section 4.2).

    python train.py --config configs/resnet20_cifar10.py

45,000 images, 64,000 steps of SGD; the rate is divided by 10 after 32,000 and again
after 48,000 steps.
Not yet trained to its end.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "model": {"name": "resnet20"},
            "dataset": {
                "name": "cifar10",
                "train_split": "train[:45000]",
                "val_split": "train[45000:]",
                "mean": "pixel",
            },
            "augment": {"crop_padding": 4, "flip": "random"},
            "optimizer": {
                "name": "sgd",
                "learning_rate": 0.1,
                "momentum": 0.9,
                "nesterov": False,
                "schedule": "steps",
                "milestones": (0.5, 0.75),
                "weight_decay": 1e-4,
                "weight_decay_mask": "all",
            },
            "batch_size": 128,
            "num_steps": 64_000,
            "checkpoint": {"every_epochs": 5},
        }
    )
