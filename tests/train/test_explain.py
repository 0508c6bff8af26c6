"""Explaining a trained run: pictures, and a line for what cannot be explained."""

import dataclasses
import shutil

import matplotlib.image
import numpy as np
import optax
import pytest

from tests.train.tiny import RESNET, set_up, tiny_config
from train_jax import explain, loop, plots
from train_jax import workdir as wd
from train_jax.models import create_model
from train_jax.trained import load_trained


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of one epoch."""
    workdir = tmp_path_factory.mktemp("explain") / "run"
    changes = {"num_epochs": 1, "model.depth": 2, "ema_decay": 0.9}
    changes |= {"model.attention_implementation": "xla"}
    loop.train_and_evaluate(set_up(workdir, changes))
    return workdir


def test_a_trained_model_is_the_one_that_was_tested(run):
    trained = load_trained(run)
    test = trained.load_test()
    assert trained.step == 5
    assert trained.model.attention_implementation == "own"
    image = test.image_BHWC.astype(np.float32) / 255
    image = (image - trained.task.mean[0]) / trained.task.std[0]
    logits_MY = trained.model.apply(trained.variables, image)
    loss_M = optax.softmax_cross_entropy_with_integer_labels(logits_MY, test.label_B)
    summary = wd.read_json(run / wd.SUMMARY)
    np.testing.assert_allclose(loss_M.mean(), summary["test_loss"], rtol=1e-5)


def test_pictures_of_chosen_images_and_of_the_model(run, capsys):
    arguments = ["--workdir", str(run), "--images", "3", "7", "--layer", "1"]
    assert explain.main(arguments) == 0
    written = capsys.readouterr().out.split()
    names = ["explain_3", "explain_7", "attention_distance", "position_similarity"]
    assert written == [str(run / wd.PLOTS / f"{name}.png") for name in names]
    for path in written:
        assert matplotlib.image.imread(path).std() > 0.01


@pytest.mark.parametrize(
    ("flags", "titles"),
    [
        (["--layer", "1"], ["rollout", "layer 1, head 1", "layer 1, head 2"]),
        (["--head", "2"], ["rollout", "layer 2, head 2"]),
    ],
)
def test_the_maps_are_those_asked_for(run, monkeypatch, flags, titles):
    drawn = []
    monkeypatch.setattr(
        plots,
        "plot_explanation",
        lambda image, probability, names, relevance, path, patch_size: drawn.append(
            (probability, relevance)
        ),
    )
    assert explain.main(["--workdir", str(run), "--images", "0", *flags]) == 0
    ((probability_Y, relevance),) = drawn
    assert list(relevance) == titles
    for map_RC in relevance.values():
        assert map_RC.shape == (2, 2)
        np.testing.assert_allclose(map_RC.sum(), 1, atol=1e-5)
    np.testing.assert_allclose(probability_Y.sum(), 1, atol=1e-5)


def test_an_image_from_a_file(run, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        plots, "plot_explanation", lambda image, *args, **kwargs: drawn.append(image)
    )
    expected_HWC = load_trained(run).load_test().image_BHWC[5]
    pixels = np.repeat(expected_HWC, 3, axis=-1)
    matplotlib.image.imsave(tmp_path / "five.png", pixels)
    arguments = ["--workdir", str(run), "--file", str(tmp_path / "five.png")]
    assert explain.main(arguments) == 0
    np.testing.assert_array_equal(drawn[0], expected_HWC)


def _fail(arguments, capsys):
    """Run the command, which must fail, and return its one line."""
    assert explain.main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    return line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--layer", "3"], "--layer must be in [1, 2], got 3"),
        (["--layer", "0"], "--layer must be in [1, 2], got 0"),
        (["--head", "9"], "--head must be in [1, 2], got 9"),
        (["--images", "0", "90"], "--images must be in [0, 89], got 90"),
        (["--images", "-1"], "--images must be in [0, 89], got -1"),
        (["--file", "no.png"], "--file 'no.png' is no readable PNG"),
    ],
)
def test_what_does_not_exist_is_named(run, capsys, flags, message):
    assert message in _fail(["--workdir", run, *flags], capsys)


def test_an_image_of_another_size(run, tmp_path, capsys):
    matplotlib.image.imsave(tmp_path / "large.png", np.zeros((9, 8, 3)))
    line = _fail(["--workdir", run, "--file", tmp_path / "large.png"], capsys)
    assert "--file must be an image of 8x8x1, got 9x8x1" in line


def test_a_folder_without_a_run_or_a_checkpoint(run, tmp_path, capsys):
    assert "holds no checkpoint" in _fail(["--workdir", tmp_path], capsys)
    shutil.copy(run / wd.CONFIG, tmp_path)
    assert "holds no checkpoint" in _fail(["--workdir", tmp_path], capsys)
    (tmp_path / wd.CHECKPOINTS).mkdir()
    assert "holds no checkpoint" in _fail(["--workdir", tmp_path], capsys)


def test_a_model_without_attention(run):
    config = tiny_config(RESNET)
    fields = dict(config.model)
    model = create_model(fields.pop("name"), dtype="float32", num_classes=10, **fields)
    trained = dataclasses.replace(load_trained(run), config=config, model=model)
    with pytest.raises(ValueError, match="must be a ViT to be explained, got 'resnet"):
        explain.Explainer(trained)
