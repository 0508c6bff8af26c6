"""ViT-S/16 on ImageNet, streamed: 90 epochs of a plain recipe (arXiv:2205.01580).

    python train.py --config configs/vit_s16_imagenet.py

Batches of 1,024, AdamW with a weight decay of 0.1 (in the paper 1e-4, not multiplied
by the rate), warm-up over 10,000 steps, random crops, MixUp of 0.2, mean pooling and
fixed position embeddings. Unlike there, TrivialAugment takes the place of RandAugment,
and test images are resized to 224 pixels, not cut out of 256. The paper's 76.5 % have
not been reproduced with it: it has not been trained to its end.

By `train_jax.plan` it takes 10.8 GiB of each chip of v5e:2x2, and 3.1 GiB of v5e:4x4.
It needs the prepared set (`config.dataset.data_dir`), about 150 GB. A folder of photos
is trained the same way:

    python train.py --config configs/vit_s16_imagenet.py:folder:PATH
"""

from ml_collections import ConfigDict


def get_config(dataset: str = "imagenet2012") -> ConfigDict:
    is_folder = dataset.startswith("folder:")
    return ConfigDict(
        {
            "model": {
                "name": "vit_s16",
                "pool": "mean",
                "position_embedding": "sincos2d",
            },
            "dataset": {
                "name": dataset,
                "train_split": "train[:99%]",
                "val_split": "train[99%:]",
                "test_split": "test" if is_folder else "validation",
                "image_size": 224,
                "streaming": True,
                "mean": (0.5, 0.5, 0.5),
                "std": (0.5, 0.5, 0.5),
            },
            "augment": {
                "crop_area": (0.05, 1.0),
                "flip": "random",
                "trivial_augment": True,
                "mixup_alpha": 0.2,
            },
            "optimizer": {
                "name": "adamw",
                "learning_rate": 1e-3,
                "schedule": "cosine",
                "warmup_epochs": 8,
                "weight_decay": 0.1,
                "clip_norm": 1.0,
            },
            "batch_size": 1024,
            "num_epochs": 90,
            "dtype": "bfloat16",
        }
    )
