"""CIFAR-10 in a few epochs: airbench's network, trained by Muon.

    python train.py --config configs/fast_cifar10.py

On a GPU, its own batch size: configs/fast_cifar10.py:2000.

Protocol: train on all 50,000 training images, 8 epochs, no validation; the result of
the paper is that with test-time augmentation (arXiv:2404.00498).
"""

from ml_collections import ConfigDict


def get_config(batch_size: str = "1000") -> ConfigDict:
    size = int(batch_size)
    # Sums over a batch of the paper's rates for 2,000 images, hence times the size.
    bias_rate, head_rate, decay = 0.053 * size, 0.67 * size, 2e-6 * size
    sgd = {"name": "sgd", "momentum": 0.85, "decay": "all"}
    return ConfigDict(
        {
            "model": {"name": "airbench"},
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
                "head": {
                    **sgd,
                    "params": "head/kernel",
                    "learning_rate": head_rate,
                    "weight_decay": decay / head_rate,
                },
                "norms": {
                    **sgd,
                    "params": "norm./bias",
                    "learning_rate": bias_rate,
                    "weight_decay": decay / bias_rate,
                },
                "whitening": {
                    **sgd,
                    "params": "whitening_bias",
                    "learning_rate": bias_rate,
                    "weight_decay": decay / bias_rate,
                    "num_epochs": 3,
                },
            },
            "batch_size": size,
            "eval_batch_size": 1000,
            "num_epochs": 8,
            "label_smoothing": 0.2,
            "test_augmentation": "flip_shift",
            "checkpoint": {"every_epochs": 4},
        }
    )
