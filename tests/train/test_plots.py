"""Plots: every one can be drawn for any number of images, classes and runs."""

import functools

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest

from tests import modules
from train_jax.data import ImageSplit
from train_jax.output import attention_plots, plots
from train_jax.tasks import Classification
from vit_jax import ViT
from vit_jax.interpret import attention_weights, pool_weights

GENERATOR = np.random.default_rng(0)
NAMES = tuple("0123456789")


def draw_image(*shape):
    return GENERATOR.integers(0, 256, shape).astype(np.uint8)


def check(path):
    """The file holds a picture that is not of one colour."""
    assert matplotlib.image.imread(path).std() > 0.01


@pytest.mark.parametrize("runs", [1, 3])
@pytest.mark.parametrize("epochs", [1, 4])
def test_curves(tmp_path, runs, epochs):
    records = []
    for epoch in range(epochs):
        values = {"epoch": epoch + 1}
        for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy"):
            values[name] = [0.5, None, 0.1][:runs] if runs > 1 else 0.5
        records.append(values)
    names = [f"seed={run}" for run in range(runs)]
    plots.plot_curves(records, names, tmp_path / "curves.png")
    check(tmp_path / "curves.png")


@pytest.mark.parametrize("num_classes", [2, 10, 30, 50])
def test_confusion_matrix(tmp_path, num_classes):
    names = [f"class {y}" for y in range(num_classes)]
    label_M, prediction_M = GENERATOR.integers(0, num_classes, (2, 100))
    plots.plot_confusion(label_M, prediction_M, names, tmp_path / "confusion.png")
    check(tmp_path / "confusion.png")


def test_names_with_dollar_signs_are_no_formulas(tmp_path):
    names, probability_MY = ("$$", "$_$"), np.eye(2)
    label_M, path = np.array([1, 0]), tmp_path / "picture.png"
    plots.plot_confusion(label_M, label_M, names, path)
    image_MHWC = draw_image(2, 8, 8, 1)
    plots.plot_misclassified(image_MHWC, label_M, probability_MY, names, path)
    relevance = {"head": GENERATOR.random((2, 2))}
    attention_plots.plot_explanation(
        image_MHWC[0], probability_MY[0], names, relevance, path, patch_size=4
    )
    check(path)


@pytest.mark.parametrize("num_wrong", [0, 3, 30])
@pytest.mark.parametrize("channels", [1, 3])
def test_misclassified(tmp_path, num_wrong, channels):
    probability_MY = np.eye(10)[np.arange(40) % 10]
    label_M = np.arange(40) % 10
    label_M[:num_wrong] = (label_M[:num_wrong] + 1) % 10
    image_MHWC = draw_image(40, 8, 6, channels)
    path = tmp_path / "misclassified.png"
    plots.plot_misclassified(image_MHWC, label_M, probability_MY, NAMES, path)
    check(path)
    pixels = matplotlib.image.imread(path)
    is_grey = np.ptp(pixels[..., :3], axis=-1).max() < 0.01
    assert is_grey == (channels == 1 or num_wrong == 0)


@pytest.mark.parametrize("channels", [1, 3])
def test_attention_maps_of_images(tmp_path, channels):
    path = tmp_path / "attention.png"
    image_BHWC = draw_image(5, 8, 16, channels)
    titles = ["2", "3", "4", "5", "6\n7"]
    attention_plots.plot_attention(
        image_BHWC, GENERATOR.random((5, 8)), titles, path, has_class_token=True
    )
    check(path)


def test_attention_maps_follow_the_pool(tmp_path, monkeypatch):
    task = Classification((8, 8, 1), NAMES, mean=(0.5,), std=(0.5,))
    model = ViT(10, patch_size=4, width=8, depth=1, num_heads=2, pool="sequence")
    image_BHWC = draw_image(3, 8, 8, 1)
    input_BHWC = task.normalize(jnp.asarray(image_BHWC))
    variables = modules.variables(model, input_BHWC)
    drawn = []
    monkeypatch.setattr(
        attention_plots, "plot_attention", lambda *it, **_: drawn.append(it)
    )
    split = ImageSplit(image_BHWC, np.arange(3), NAMES)
    task.plot(model, variables, split, np.eye(10)[:3], tmp_path)

    def compute(capture):
        return jax.jit(functools.partial(capture, model))(variables, input_BHWC)

    (weights_BNTT,) = compute(attention_weights)
    weight_BT = np.asarray(compute(pool_weights))
    assert np.ptp(weight_BT) > 0.1  # far from equal weights
    expected = np.einsum("bt,bnts->bs", weight_BT, weights_BNTT) / 2
    np.testing.assert_allclose(drawn[0][1], expected, rtol=1e-5, atol=1e-6)


def test_cross_attention(tmp_path):
    path = tmp_path / "cross_attention.png"
    source_S, target_T = np.arange(5), np.arange(4)
    weights_LNTS = GENERATOR.random((2, 3, 4, 5))
    attention_plots.plot_cross_attention(source_S, target_T, weights_LNTS, path)
    check(path)


@pytest.mark.parametrize("num_maps", [1, 9])
def test_explanation(tmp_path, num_maps):
    path = tmp_path / "explanation.png"
    relevance = {f"head {i}": GENERATOR.random((2, 3)) for i in range(num_maps)}
    probability_Y = np.linspace(0, 0.2, 10)
    attention_plots.plot_explanation(
        draw_image(8, 12, 1), probability_Y, NAMES, relevance, path, patch_size=4
    )
    check(path)


def test_attention_distance(tmp_path):
    path = tmp_path / "distance.png"
    attention_plots.plot_attention_distance(GENERATOR.random((3, 4)), path)
    check(path)


def test_position_similarity(tmp_path):
    path = tmp_path / "similarity.png"
    attention_plots.plot_position_similarity(GENERATOR.random((6, 6)), (2, 3), path)
    check(path)
