"""Train a model as a config says: `python train.py --config configs/vit_digits.py`."""

import sys

from train_jax.cli.huge_pages import restart_with_huge_pages
from train_jax.train import main

if __name__ == "__main__":
    restart_with_huge_pages()
    sys.exit(main(sys.argv[1:]))
