"""Scaled dot-product attention on random tokens and on the patches of a digit.

    python examples/scaled_dot_product_attention.py --output attention_example

Three experiments: three random tokens, sixteen images of 256 random patches, and the
patches of a real digit. The pictures are written to that folder. Needs scikit-learn and
matplotlib, which the extra [train] brings.
"""

import argparse
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

from vit_jax import dot_product_attention, patchify


def main(arguments: list[str]) -> int:
    """Run the experiments one after another."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("attention_example")
    )
    output = parser.parse_args(arguments).output
    # By default a TPU and newer GPUs round the factors of products.
    jax.config.update("jax_default_matmul_precision", "highest")
    output.mkdir(parents=True, exist_ok=True)
    np.set_printoptions(precision=3, suppress=True, threshold=12)
    three_tokens(output / "three_tokens.png")
    sixteen_images(output / "sixteen_images.png")
    patches_of_a_digit(output / "patches_of_a_digit.png")
    return 0


def random_tokens(shape: tuple[int, ...]) -> list[jax.Array]:
    """Draw query, key and value from the standard normal distribution."""
    keys = jax.random.split(jax.random.key(0), 3)
    return [jax.random.normal(key, shape) for key in keys]


def three_tokens(path: pathlib.Path) -> None:
    """Attend within one sequence of three tokens: small enough to read."""
    print("\n1. Three random tokens, shape (1, 3, 512)")
    query_BTK, key_BTK, value_BTK = random_tokens((1, 3, 512))

    # The inner product of a token's query with a token's key measures how well they
    # fit. Divided by √512 these products have a standard deviation of about one,
    # whatever the size of the tokens. Undivided, one of the weights below would be
    # nearly 1 and the others nearly 0.
    products_BTT = jnp.einsum("btk,bsk->bts", query_BTK, key_BTK)
    print("products of queries and keys\n", np.asarray(products_BTT))
    print("divided by the square root of 512\n", np.asarray(products_BTT / 512**0.5))

    # Softmax turns each row of products into positive weights that sum to 1. The
    # output is the mean of the values with these weights.
    output_BTK, weights_BTT = dot_product_attention(
        query_BTK, key_BTK, value_BTK, return_weights=True
    )
    print("attention map: softmax of each row\n", np.asarray(weights_BTT))
    print("sums of its rows", np.asarray(weights_BTT.sum(axis=-1)))
    print(f"output, shape {output_BTK.shape}\n", np.asarray(output_BTK))

    # The same by hand, for the first token.
    by_hand_K = sum(weights_BTT[0, 0, s] * value_BTK[0, s] for s in range(3))
    np.testing.assert_allclose(output_BTK[0, 0], by_hand_K, atol=1e-5)

    figure = Figure(figsize=(4, 3.4), layout="constrained")
    axis = figure.subplots()
    picture = axis.imshow(weights_BTT[0], cmap="magma", vmin=0, vmax=1)
    for t, s in np.ndindex(3, 3):
        weight = float(weights_BTT[0, t, s])
        colour = "black" if weight > 0.6 else "white"
        axis.text(s, t, f"{weight:.2f}", ha="center", va="center", color=colour)
    names = ["token 1", "token 2", "token 3"]
    axis.set_xticks(range(3), names)
    axis.set_yticks(range(3), names, rotation=90, va="center")
    axis.set_xlabel("key token")
    axis.set_ylabel("query token")
    axis.set_title("Attention map of three random tokens", fontsize=10)
    figure.colorbar(picture, ax=axis, label="weight")
    figure.savefig(path, dpi=120)


def sixteen_images(path: pathlib.Path) -> None:
    """Attend within sixteen images of 16 × 16 patches: only the shapes change."""
    print("\n2. Sixteen images of 256 random patches, shape (16, 256, 512)")
    output_BTK, weights_BTT = dot_product_attention(
        *random_tokens((16, 256, 512)), return_weights=True
    )
    sums_BT = weights_BTT.sum(axis=-1)
    print(f"output {output_BTK.shape}, attention map {weights_BTT.shape}")
    print(f"sums of the rows lie between {sums_BT.min():.6f} and {sums_BT.max():.6f}")
    print(f"largest weight {weights_BTT.max():.3f}; even ones would be {1 / 256:.4f}")

    # A row of the map holds the weights of one patch for all 256 patches; reshaped
    # into rows and columns it is a picture. As everything is random, it shows noise:
    # no patch prefers its neighbours.
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    whole, first, last = figure.subplots(1, 3)
    most = 8 / 256  # eight times an even weight, or the few large ones hide the rest
    whole.imshow(weights_BTT[0], cmap="magma", vmax=most)
    whole.set_title("attention map of the first image", fontsize=10)
    whole.set_xlabel("key patch")
    whole.set_ylabel("query patch")
    for axis, patch in ((first, 0), (last, 255)):
        picture = axis.imshow(
            weights_BTT[0, patch].reshape(16, 16), cmap="magma", vmax=most
        )
        axis.set_title(f"row {patch}, as 16 × 16 patches", fontsize=10)
        axis.set_xticks([0, 5, 10, 15])
        axis.set_yticks([0, 5, 10, 15])
        axis.set_xlabel("column of the patch")
        axis.set_ylabel("row of the patch")
    figure.colorbar(picture, ax=last, label="weight", extend="max", shrink=0.6)
    figure.savefig(path, dpi=120)


def patches_of_a_digit(path: pathlib.Path) -> None:
    """Attend within a real image: the map has a meaning, though nothing was learnt."""
    print("\n3. The patches of a digit")
    image_HW = load_digits().images[0] / 16
    image_BHWC = jnp.asarray(image_HW, jnp.float32)[None, :, :, None]
    patches = patchify(image_BHWC, 2)
    print(f"image {image_BHWC.shape}, cut into patches {patches.shape}")

    # The patches themselves serve as query, key and value: patches that look alike fit
    # each other. Centred, so that dark ones fit dark ones, and scaled up, as four
    # numbers between 0 and 1 would give nearly even weights.
    tokens = 2.5 * (patches - patches.mean(axis=1, keepdims=True))
    output, weights_BTT = dot_product_attention(
        tokens, tokens, patches, return_weights=True
    )
    print("sums of the rows", np.asarray(weights_BTT.sum(axis=-1)))
    print(f"output {output.shape}: each patch, mixed with those like it")

    # In a Transformer three learnt matrices compute query, key and value of each patch:
    # training decides which patches fit, not the similarity of their pixels.
    stroke, corner = 5, 0
    figure = Figure(figsize=(10, 3), layout="constrained")
    axes = figure.subplots(1, 4)
    axes[0].imshow(image_HW, cmap="gray")
    axes[0].set_title("image, 4 × 4 patches", fontsize=10)
    for line in (1.5, 3.5, 5.5):
        axes[0].axhline(line, color="C1", linewidth=0.8)
        axes[0].axvline(line, color="C1", linewidth=0.8)
    axes[1].imshow(weights_BTT[0], cmap="magma")
    axes[1].set_title("attention map", fontsize=10)
    axes[1].set_xlabel("key patch")
    axes[1].set_ylabel("query patch")
    for axis, patch, name in ((axes[2], stroke, "stroke"), (axes[3], corner, "corner")):
        axis.imshow(weights_BTT[0, patch].reshape(4, 4), cmap="magma")
        row, column = divmod(patch, 4)
        axis.plot(column, row, "s", mec="C0", mfc="none", ms=34, mew=2)
        axis.set_title(f"what the {name} attends to", fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
