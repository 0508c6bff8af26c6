"""Train a model as a config says: `python train.py --config configs/vit_digits.py`."""

import sys

from train_jax.train import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
