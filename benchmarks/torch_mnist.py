"""The usual PyTorch program for MNIST: python -m benchmarks.torch_mnist.

A Dataset that turns one image at a time into a tensor, as torchvision's transforms do,
a DataLoader with two workers, a ViT of nn.TransformerEncoder, AdamW, and an evaluation
after each epoch: the recipe of configs/vit_mnist_reference.py.
"""

import argparse
import pathlib
import sys

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

from benchmarks.peers import DEVICE
from benchmarks.torch_models import ViT

_MEAN, _STD = 0.1307, 0.3081


class Images(Dataset):
    """A split; like torchvision's, it makes a PIL image, then a tensor of it."""

    def __init__(self, image_BHW: np.ndarray, label_B: np.ndarray):
        self.image_BHW, self.label_B = image_BHW, label_B

    def __len__(self) -> int:
        return len(self.label_B)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = PIL.Image.fromarray(self.image_BHW[index])
        pixels = torch.from_numpy(np.array(image, copy=True))
        pixels = pixels[None].to(torch.float32).div(255)
        return pixels.sub(_MEAN).div(_STD), int(self.label_B[index])


def make_model(side: int) -> ViT:
    """The ViT for images of side × side pixels, initialised as lecture code does."""
    model = ViT(
        image_shape=(side, side, 1),
        num_classes=10,
        patch_size=side // 4,
        width=128,
        depth=3,
        num_heads=4,
        dropout=0.1,
    )
    torch.nn.init.normal_(model.cls)
    torch.nn.init.normal_(model.pos_embedding)
    return model


@torch.no_grad()
def evaluate(model: ViT, loader: DataLoader) -> float:
    """The accuracy over a split."""
    model.eval()
    hits = 0
    for image, label in loader:
        predicted = model(image.to(DEVICE)).argmax(1).cpu()
        hits += (predicted == label).sum().item()
    return hits / len(loader.dataset)  # type: ignore


def main(arguments: list[str]) -> int:
    """Train until the last epoch, or until the accuracy is reached."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=pathlib.Path, required=True, help="an .npz file")
    parser.add_argument("--num_epochs", type=int, default=1)
    parser.add_argument("--accuracy", type=float, default=1.0, help="to stop at")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--first_step", action="store_true", help="stop after a step")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    with np.load(options.data) as data:
        train = Images(data["train_image"], data["train_label"])
        test = Images(data["test_image"], data["test_label"])
    train_loader = DataLoader(train, 128, shuffle=True, num_workers=2, drop_last=True)
    test_loader = DataLoader(test, 512, num_workers=2)
    model = make_model(train.image_BHW.shape[1]).to(DEVICE)
    forward = torch.compile(model) if options.compile else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for epoch in range(options.num_epochs):
        model.train()
        for image, label in train_loader:
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(forward(image.to(DEVICE)), label.to(DEVICE))
            loss.backward()
            optimizer.step()
            if options.first_step:
                print(f"loss {loss.item():.4f}")
                return 0
        accuracy = evaluate(model, test_loader)
        print(f"epoch {epoch + 1}: {accuracy:.2%}", flush=True)
        if accuracy >= options.accuracy:
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
