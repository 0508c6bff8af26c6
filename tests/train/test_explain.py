"""Explain a trained run: pictures of its attention, one error line otherwise."""

import dataclasses
import errno
import functools
import json
import os
import shutil
import tempfile

import cv2
import flax.linen as nn
import jax
import matplotlib.image
import numpy as np
import optax
import pytest

import resnet_jax.weights
import train
from resnet_jax import ResNet
from tests import modules
from tests.train.command import train_arguments
from train_jax import explain
from train_jax.inference import explainers
from train_jax.inference import flags as model_flags
from train_jax.output import attention_plots
from train_jax.output import workdir as wd
from train_jax.run import experiment
from train_jax.run.trained_model import TrainedModel, load_model
from weight_files import Pretrained


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of one epoch."""
    workdir = tmp_path_factory.mktemp("explain") / "run"
    fields = {"num_steps": 5, "model.depth": 2, "ema_decay": 0.9}
    fields |= {"model.attention_implementation": "xla"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "_plot", lambda *_: None)
        assert train.main(train_arguments(workdir, **fields)) == 0
    return workdir


@pytest.fixture(scope="module")
def image_MHWC(run):
    """The images that the run was tested on."""
    return load_model(run).load_test().image_BHWC


@pytest.fixture(scope="module", autouse=True)
def load_once():
    """Restore each model once: that is most of the time of a short command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_flags, "load_model", functools.cache(load_model))
        yield


@pytest.fixture
def drawn(monkeypatch):
    """The arguments of every call of `plot_explanation`, which draws nothing."""
    calls = []
    monkeypatch.setattr(
        attention_plots, "plot_explanation", lambda *args, **_: calls.append(args)
    )
    return calls


def test_loaded_model_has_the_test_loss_of_the_summary(run):
    loaded = load_model(run)
    test = loaded.load_test()
    assert loaded.step == 5
    assert loaded.model.attention_implementation == "own"
    image = test.image_BHWC.astype(np.float32) / 255
    image = (image - loaded.task.mean[0]) / loaded.task.std[0]
    logits_MY = jax.jit(loaded.model.apply)(loaded.variables, image)
    loss_M = optax.softmax_cross_entropy_with_integer_labels(logits_MY, test.label_B)
    summary = json.loads((run / wd.SUMMARY).read_text())
    np.testing.assert_allclose(loss_M.mean(), summary["test_loss"], rtol=1e-5)


def test_a_small_test_split_is_explained(run, drawn, monkeypatch):
    load = TrainedModel.load_test
    monkeypatch.setattr(TrainedModel, "load_test", lambda self: load(self)[:2])
    assert explain.main(["--workdir", str(run)]) == 0
    assert len(drawn) == 2


def test_a_checkpoint_is_chosen_by_name(run, capsys):
    for which in ("last", "best", "5"):
        assert load_model(run, checkpoint=which).step == 5
    assert explain.main(["--workdir", str(run), "--checkpoint", "7"]) == 2
    assert capsys.readouterr().err == (
        "python -m train_jax.explain: error: checkpoint must be last, best or the "
        f"step of one of those in '{run / wd.CHECKPOINTS}' (5), got '7'\n"
    )


def test_pictures_of_chosen_images_and_of_the_model(run, capsys):
    arguments = ["--workdir", str(run), "--images", "3", "7", "--layer", "1"]
    assert explain.main(arguments) == 0
    written = capsys.readouterr().out.split()
    names = ["explain_3", "explain_7", "attention_distance", "position_similarity"]
    assert written == [str(run / wd.PLOTS / f"{name}.png") for name in names]
    for path in written:
        assert matplotlib.image.imread(path).std() > 0.01


def test_attention_distances_of_a_few_images_at_a_time(
    run, image_MHWC, tmp_path, monkeypatch
):
    found = []
    monkeypatch.setattr(
        attention_plots, "plot_attention_distance", lambda *args: found.append(args[0])
    )
    explainer = explainers.make_explainer(load_model(run))
    sizes, distances = [], explainer._distances

    def spy(image_BHWC):
        sizes.append(len(image_BHWC))
        return distances(image_BHWC)

    monkeypatch.setattr(explainer, "_distances", spy)
    explainer.draw_model(tmp_path, image_MHWC[:19])
    assert sizes == [8, 8, 3]
    np.testing.assert_allclose(found[0], distances(image_MHWC[:19]), rtol=1e-5)


@pytest.mark.parametrize(
    ("flags", "titles"),
    [
        (["--layer", "1"], ["rollout", "layer 1, head 1", "layer 1, head 2"]),
        (["--head", "2"], ["rollout", "layer 2, head 2"]),
    ],
)
def test_flags_choose_the_layer_and_the_head(run, drawn, flags, titles):
    assert explain.main(["--workdir", str(run), "--images", "0", *flags]) == 0
    ((_, probability_Y, _, relevance, _),) = drawn
    assert list(relevance) == titles
    for map_of_patches in relevance.values():
        assert map_of_patches.shape == (2, 2)
        np.testing.assert_allclose(map_of_patches.sum(), 1, atol=1e-5)
    np.testing.assert_allclose(probability_Y.sum(), 1, atol=1e-5)


def test_another_run_has_a_folder_of_its_own(run, capsys, drawn, monkeypatch):
    monkeypatch.setattr(model_flags, "load_model", lambda workdir, **_: load_model(run))
    code = explain.main(["--workdir", str(run), "--run", "2", "--images", "0"])
    assert code == 0
    first, *_ = capsys.readouterr().out.splitlines()
    assert first == str(run / wd.PLOTS / "run_2" / "explain_0.png")


def test_an_image_from_a_file(run, image_MHWC, tmp_path, drawn):
    expected_HWC = image_MHWC[5]
    pixels = np.repeat(expected_HWC, 3, axis=-1)
    matplotlib.image.imsave(tmp_path / "five.png", pixels)
    arguments = ["--workdir", str(run), str(tmp_path / "five.png")]
    assert explain.main(arguments) == 0
    np.testing.assert_array_equal(drawn[0][0], expected_HWC)


def _write_image(path, image_HWC):
    path.write_bytes(cv2.imencode(".png", image_HWC)[1].tobytes())
    return path


def test_16_bits_are_rounded(run, image_MHWC, tmp_path, drawn):
    expected_HWC = image_MHWC[5]
    wide_HWC = np.clip(expected_HWC.astype(int) * 257 + 128, 0, 65535)
    file = tmp_path / "five.tif"
    file.write_bytes(cv2.imencode(".tif", wide_HWC.astype(np.uint16))[1].tobytes())
    assert explain.main(["--workdir", str(run), str(file)]) == 0
    np.testing.assert_array_equal(drawn[0][0], expected_HWC)


def test_a_file_leaves_the_pictures_of_test_images_alone(
    run, image_MHWC, tmp_path, capsys
):
    out = tmp_path / "new" / "folder"
    arguments = ["--workdir", str(run), "--out", str(out)]
    assert explain.main([*arguments, "--images", "0"]) == 0
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert capsys.readouterr().out.split() == [
        str(out / f"{name}.png")
        for name in ("explain_0", "attention_distance", "position_similarity")
    ]
    file = _write_image(tmp_path / "0.png", image_MHWC[5])
    assert explain.main([str(file), *arguments]) == 0
    assert capsys.readouterr().out.split() == [str(out / "explain_file_0.png")]
    after = {path: path.read_bytes() for path in out.iterdir()}
    assert set(after) == {*before, out / "explain_file_0.png"}
    assert before.items() <= after.items()


def test_output_names_of_unusual_file_names(run, image_MHWC, tmp_path, capsys):
    names = {
        "x" * 251: f"explain_file_{'x' * 238}.png",
        "x" + "ü" * 125: f"explain_file_x{'ü' * 118}.png",
        "my own five": "explain_file_my_own_five.png",
        "line\nbreak": "explain_file_line_break.png",
        "\udcff": "explain_file__.png",
    }
    files = [_write_image(tmp_path / f"{stem}.png", image_MHWC[5]) for stem in names]
    out = tmp_path / "out"
    flags = ["--workdir", str(run), *map(str, files), "--out", str(out)]
    assert explain.main(flags) == 0
    assert sorted(os.listdir(out)) == sorted(names.values())
    assert max(len(os.fsencode(name)) for name in names.values()) <= 255
    assert capsys.readouterr().out.splitlines() == [
        str(out / name) for name in names.values()
    ]


def test_the_home_folder_is_expanded(run, image_MHWC, monkeypatch):
    monkeypatch.setenv("HOME", str(run.parent))
    _write_image(run.parent / "five.png", image_MHWC[5])
    flags = ["--workdir", "~/run", "~/five.png", "--out", "~/pictures"]
    assert explain.main(flags) == 0
    assert os.listdir(run.parent / "pictures") == ["explain_file_five.png"]


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
        (["--invert"], "--invert is for pictures that are named"),
        (["a.png", "--images", "3"], "--images is for test images, not for pictures"),
        (["--out", "s3://bucket/x"], "--out must be a path on this machine"),
    ],
)
def test_error_line_for_wrong_flags(run, capsys, flags, message):
    assert message in _fail(["--workdir", run, *flags], capsys)


@pytest.mark.parametrize(
    ("workdir", "message"),
    [
        ("https://host/run", "must be a path on this machine or gs://BUCKET/FOLDER"),
        ("x" * 300, "File name too long"),
    ],
)
def test_error_line_for_a_wrong_workdir(capsys, workdir, message):
    assert message in _fail(["--workdir", workdir], capsys)


@pytest.mark.parametrize(
    ("out", "reason"),
    [
        ("file", "File exists"),
        ("file/below", "Not a directory"),
        ("x" * 300, "File name too long"),
    ],
)
def test_error_line_for_an_out_that_cannot_be_written(
    run, tmp_path, capsys, monkeypatch, out, reason
):
    monkeypatch.setattr(explainers.ViTExplainer, "draw_image", _must_not_be_called)
    (tmp_path / "file").touch()
    line = _fail(["--workdir", run, "--out", tmp_path / out], capsys)
    expected = f"no pictures can be written to {str(tmp_path / out)!r}: {reason}; --out"
    assert line.startswith(f"python -m train_jax.explain: error: {expected}")
    assert os.listdir(tmp_path) == ["file"]


def test_error_line_for_a_workdir_that_is_read_only(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(explainers.ViTExplainer, "draw_image", _must_not_be_called)
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir, ignore=shutil.ignore_patterns(wd.PLOTS))

    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    # As root, permissions would change nothing.
    monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)
    line = _fail(["--workdir", workdir], capsys)
    plots_folder = str(workdir / wd.PLOTS)
    assert f"no pictures can be written to {plots_folder!r}: Read-only file" in line
    assert "; --out names another folder" in line
    assert not (workdir / wd.PLOTS).exists()


def test_a_full_disk_leaves_nothing(run, tmp_path, capsys, monkeypatch):
    def fill(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(attention_plots, "plot_attention_distance", fill)
    line = _fail(["--workdir", run, "--images", "0", "--out", tmp_path / "a/b"], capsys)
    assert "No space left on device" in line
    assert os.listdir(tmp_path) == []


def _must_not_be_called(*args, **kwargs):
    raise AssertionError("drawn before it was known where to write")


def test_an_image_of_another_size_is_resized(run, tmp_path, drawn):
    pixels = np.zeros((9, 20, 3))
    pixels[:, 4:] = 1
    matplotlib.image.imsave(tmp_path / "large.png", pixels)
    assert explain.main(["--workdir", str(run), str(tmp_path / "large.png")]) == 0
    assert drawn[0][0].shape == (8, 8, 1)
    assert (drawn[0][0] == 255).all()  # the dark fifth is outside of the centre


def test_files_that_cannot_be_read_are_named_and_the_others_drawn(
    run, image_MHWC, tmp_path, drawn, capsys
):
    folder = tmp_path / "pictures"
    folder.mkdir()
    _write_image(folder / "a.png", image_MHWC[5])
    (folder / "b.png").write_text("no picture")
    (folder / "deep").mkdir()
    _write_image(folder / "deep" / "a.png", image_MHWC[6])
    assert explain.main(["--workdir", str(run), str(folder), "no.png"]) == 1
    captured = capsys.readouterr()
    names = [line.rpartition("/")[2] for line in captured.out.split()]
    assert names == ["explain_file_a.png", "explain_file_2_a.png"]
    lines = captured.err.splitlines()
    assert f"error: {str(folder / 'b.png')!r} is no picture of a known" in lines[0]
    assert "error: 'no.png' can't be read: No such file" in lines[1]


def test_a_folder_without_a_run_or_a_checkpoint(run, tmp_path, capsys):
    assert "holds no checkpoint" in _fail(["--workdir", tmp_path], capsys)
    shutil.copy(run / wd.CONFIG, tmp_path)
    assert "holds no checkpoint" in _fail(["--workdir", tmp_path], capsys)
    (tmp_path / wd.CHECKPOINTS).mkdir()
    assert "holds no checkpoint" in _fail(["--workdir", tmp_path], capsys)


def test_a_checkpoint_of_version_0_1(run, tmp_path, capsys):
    workdir = shutil.copytree(run, tmp_path / "run")
    folder = workdir / wd.CHECKPOINTS / "5"
    (folder / "metadata").rename(folder / "about")
    line = _fail(["--workdir", workdir], capsys)
    expected = f"checkpoint {folder} was written by version 0.1"
    assert line == f"python -m train_jax.explain: error: {expected}"


def test_grad_cam_of_a_resnet(tmp_path, drawn, capsys):
    model = ResNet(3, stage_sizes=(1, 1), width=8)
    variables = modules.variables(model, 1, 32, 32, 3)
    half = (0.5, 0.5, 0.5)
    pretrained = Pretrained(model, variables, (32, 32, 3), mean=half, std=half)
    file = tmp_path / "a.safetensors"
    resnet_jax.weights.save(file, pretrained, format="timm")
    _write_image(tmp_path / "a.png", np.full((32, 32, 3), 9, np.uint8))
    flags = ["--weights", str(file), str(tmp_path / "a.png"), "--out", str(tmp_path)]
    assert explain.main(flags) == 0
    ((image_HWC, probability_Y, names, relevance, _),) = drawn
    assert image_HWC.shape == (32, 32, 3) and len(probability_Y) == 3
    assert names == ("0", "1", "2")
    assert relevance["Grad-CAM"].shape == (16, 16)
    assert "--head is for a ViT alone" in _fail([*flags, "--head", "1"], capsys)
    assert "--out is required with --weights" in _fail(flags[:3], capsys)
    message = "pictures must be named, as weights have no test images"
    assert message in _fail([*flags[:2], *flags[3:]], capsys)


def test_error_for_a_model_that_cannot_be_explained(run):
    trained = load_model(run)
    other = dataclasses.replace(trained, model=nn.Dense(10), name="dense")
    with pytest.raises(ValueError, match=r"must be a ViT or a ResNet .* got 'dense'"):
        explainers.make_explainer(other)
