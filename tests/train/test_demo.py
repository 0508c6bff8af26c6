"""The demo: what the page answers, and what is said where it can't be served."""

import dataclasses
import sys
import types

import numpy as np
import pytest

import vit_jax
from tests import modules
from train_jax import demo
from train_jax.config.fields import DatasetConfig
from train_jax.data.picture import flatten_picture
from train_jax.inference.classifier import Classifier, fit_image
from train_jax.inference.explainers import make_explainer
from train_jax.run.trained_model import TrainedModel
from train_jax.tasks import Classification


@pytest.fixture(scope="module")
def trained():
    model = vit_jax.ViT(3, patch_size=4, width=8, depth=1, num_heads=2)
    variables = modules.variables(model, 1, 8, 8, 1)
    task = Classification((8, 8, 1), ("a", "b", "c"), (0.5,), (0.5,), border=0.0)
    return TrainedModel(task, model, variables, "vit")


def answer(trained, pixels_HWC, monkeypatch):
    monkeypatch.setitem(
        sys.modules, "gradio", types.SimpleNamespace(Error=RuntimeError)
    )
    classifier = Classifier(trained, batch_size=1)
    return demo._answer(classifier, make_explainer(trained), pixels_HWC)


def test_a_dark_drawing_on_white_is_inverted(trained, monkeypatch):
    drawing = np.full((40, 40, 4), 255, np.uint8)
    drawing[10:30, 15:25, :3] = 0
    light = np.zeros((40, 40, 4), np.uint8)
    light[10:30, 15:25] = 255
    light[..., 3] = 255
    (a, picture), (b, _) = (answer(trained, x, monkeypatch) for x in (drawing, light))
    assert a == b and a.keys() == {"a", "b", "c"}
    assert sum(a.values()) == pytest.approx(1)
    assert picture.dtype == np.uint8 and picture.shape[2] == 3


def test_bars_beside_a_padded_scan_are_no_dark_border(trained, monkeypatch):
    """In training the scans' borders were bars, too."""
    padded = dataclasses.replace(trained, resize="pad")
    scan = np.full((30, 10, 4), 255, np.uint8)
    scan[10:20, 4:6, :3] = 0
    got, _ = answer(padded, scan, monkeypatch)
    image_HWC = fit_image(padded, flatten_picture(scan, channels=1))
    expected = Classifier(padded, batch_size=1)([image_HWC])[0]
    np.testing.assert_allclose(list(got.values()), expected, atol=1e-6)


def test_classes_of_one_name_are_told_apart(trained, monkeypatch):
    task = dataclasses.replace(trained.task, class_names=("crane", "b", "crane"))
    twins = dataclasses.replace(trained, task=task)
    drawing = np.zeros((8, 8, 4), np.uint8)
    drawing[..., 3] = 255
    probabilities, _ = answer(twins, drawing, monkeypatch)
    assert list(probabilities) == ["crane (0)", "b", "crane (2)"]
    assert sum(probabilities.values()) == pytest.approx(1)


@pytest.mark.parametrize("pixels", [None, np.full((9, 9, 4), 255, np.uint8)])
def test_an_empty_canvas_is_said(pixels, trained, monkeypatch):
    with pytest.raises(RuntimeError, match="Draw something, or drop a picture"):
        answer(trained, pixels, monkeypatch)


@pytest.mark.parametrize("share", [False, True])
def test_the_page_is_shared_if_that_is_asked_for(trained, monkeypatch, share):
    served = []
    page = types.SimpleNamespace(launch=lambda **how: served.append(how))
    monkeypatch.setattr(demo, "make_page", lambda _: page)
    monkeypatch.setattr(demo.flags, "load_named_model", lambda _: trained)
    assert demo.main(["--workdir", "run", *(["--share"] if share else [])]) == 0
    assert served[0]["share"] == share


def test_a_space_does_not_name_a_folder_of_this_machine(trained, monkeypatch, tmp_path):
    dataset = DatasetConfig(name="folder:/home/me/pets")
    ours = dataclasses.replace(trained, dataset=dataset, step=3)
    monkeypatch.setattr(demo.flags, "load_named_model", lambda _: ours)
    monkeypatch.setattr(demo, "make_page", lambda _: None)
    titles = []
    monkeypatch.setattr(
        demo, "write_space", lambda *_, title, **__: titles.append(title)
    )
    space = ["--space", str(tmp_path / "space")]
    assert demo.main(["--workdir", "run", *space]) == 0
    assert titles == ["vit on a folder of pictures"]


def test_gradio_is_asked_for(trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ValueError, match=r"the demo needs gradio: pip install"):
        demo.make_page(trained)
