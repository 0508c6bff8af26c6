"""ResNet-18 on CIFAR-10 in eleven epochs, for CPUs: trained by Muon.

    python train.py --config configs/resnet18_short_cifar10.py

On all 50,000 training images, without validation; the augmentation and Muon's options
are those of airbench (arXiv:2404.00498), BatchNorm and the head are trained by SGD. On
two cores of an Intel Xeon, in float32: 94.11 % test accuracy (seed 0), without
test-time augmentation, after 2.7 hours of training, summed over its resumes and partly
beside other work.
"""

from ml_collections import ConfigDict


def get_config(batch_size: str = "500") -> ConfigDict:
    size = int(batch_size)
    sgd = {"name": "sgd", "momentum": 0.85, "weight_decay": 5e-4}
    return ConfigDict(
        {
            "model": {"name": "resnet18"},
            "dataset": {"name": "cifar10", "train_split": "train", "val_split": None},
            "augment": {
                "crop_padding": 2,
                "crop_fill": "reflection",
                "flip": "alternating",
            },
            "optimizer": {
                "name": "muon",
                "learning_rate": 0.24 * (size / 2000) ** 0.5,
                "momentum": 0.6,
                "ns_steps": 3,
                "consistent_rms": None,
                "keep_norm": True,
                "schedule": "linear",
            },
            "groups": {
                "head": {**sgd, "params": "head/", "learning_rate": 0.01},
                "norms": {**sgd, "params": "norm", "learning_rate": 0.1},
            },
            "batch_size": size,
            "eval_batch_size": 1000,
            "num_epochs": 11,
            "label_smoothing": 0.2,
            "checkpoint": {"every_epochs": 1},
        }
    )
