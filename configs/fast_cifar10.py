"""CIFAR-10 in a few epochs: airbench's network, trained by Muon.

    python train.py --config configs/fast_cifar10.py

Eight epochs on all 50,000 training images, without validation; the paper's 94 % are
with test-time augmentation (arXiv:2404.00498), which the summary reports apart. On two
cores of an AMD EPYC, in float32: 94.18 ± 0.09 % (93.38 ± 0.17 % without augmentation;
seeds 0-4). The whole command took 19.7 to 21.1 minutes (seeds 1-4). With a newer
convolution, on two cores of an Intel Xeon, it took 19.8 minutes and reached 94.23 %
(93.41 %; seed 0). With `--config.dtype=bfloat16` on such a Xeon, which has AMX:
94.18 ± 0.12 % (93.35 ± 0.18 %; seeds 0-4) in 17.5 to 18.3 minutes, and 14.6 with seed
4, when the convolutions had become faster.

On a GPU, with the batches of the paper's code:

    python train.py --config configs/fast_cifar10.py:2000 --config.dtype=bfloat16

94.03 ± 0.07 % (93.16 ± 0.05 % without augmentation; seeds 0-2) after 1.39 s of training
on an H200 (288,000 images a second). The first start compiles for 27 s, later ones for
1 s.
"""

from ml_collections import ConfigDict


def get_config(batch_size: str = "1000") -> ConfigDict:
    size = int(batch_size)
    # airbench94_muon.py sums the loss over a batch; here it is the mean, so its rates
    # are multiplied by the batch size.
    bias_rate, head_rate, decay = 0.053 * size, 0.67 * size, 2e-6 * size
    sgd = {"name": "sgd", "momentum": 0.85, "weight_decay_mask": "all"}
    bias = {**sgd, "learning_rate": bias_rate, "weight_decay": decay / bias_rate}
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
                "norms": {**bias, "params": "norm./bias"},
                "whitening": {**bias, "params": "whitening_bias", "num_epochs": 3},
            },
            "batch_size": size,
            "eval_batch_size": 1000,
            "num_epochs": 8,
            "label_smoothing": 0.2,
            "test_augmentation": "flip_shift",
            "checkpoint": {"every_epochs": 4},
        }
    )
