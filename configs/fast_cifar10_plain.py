"""CIFAR-10 without test-time augmentation: a wider `fast_cifar10`.

    python train.py --config configs/fast_cifar10_plain.py

Eleven epochs on all 50,000 training images, without validation. Airbench's network and
its training by Muon (arXiv:2404.00498), with 1.5 times the channels and batches of 500.
On two cores of an Intel Xeon: 94.14 ± 0.03 % (seeds 0 and 1). The whole command took 59
minutes with seed 0, and 67 with seed 1, when the machine was slower and, at the end,
had other work. With `--config.dtype=bfloat16` on such a Xeon, which has AMX:
94.22 ± 0.02 % (seeds 0 and 1) in 34.9 minutes with either seed.
"""

from ml_collections import ConfigDict


def get_config(batch_size: str = "500") -> ConfigDict:
    size = int(batch_size)
    # airbench94_muon.py sums the loss over a batch; here it is the mean, so its rates
    # are multiplied by the batch size.
    bias_rate, head_rate, decay = 0.053 * size, 0.67 * size, 2e-6 * size
    sgd = {"name": "sgd", "momentum": 0.85, "weight_decay_mask": "all"}
    bias = {**sgd, "learning_rate": bias_rate, "weight_decay": decay / bias_rate}
    return ConfigDict(
        {
            # BatchNorm averages as many images as with batches of 1,000 and 0.6.
            "model": {"name": "airbench", "widths": (96, 384, 384), "momentum": 0.8},
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
                "norms": {**bias, "params": "norm./bias"},
                "whitening": {**bias, "params": "whitening_bias", "num_epochs": 3},
            },
            "batch_size": size,
            "eval_batch_size": 1000,
            "num_epochs": 11,
            "label_smoothing": 0.2,
            "checkpoint": {"every_epochs": 4},
        }
    )
