"""Use a trained model by command: evaluate, predict, export."""

import argparse
import contextlib
import csv
import dataclasses
import functools
import importlib.metadata
import importlib.util
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
from typing import get_args

import jax
import jax.export
import numpy as np
import pytest
import yaml
from PIL import Image

import resnet_jax.weights
import train
import train_jax
import vit_jax
from resnet_jax import ResNet
from tests import modules
from tests.train.command import train_arguments
from tests.train.data.encodings import (
    COLOUR,
    LOSSLESS_COLOUR,
    LOSSY_COLOUR,
    STORED,
    exif,
    pillow,
    with_alpha,
)
from train_jax import data, evaluate, export, predict
from train_jax.config.fields import DatasetConfig
from train_jax.data.resize import Resize, resize_image
from train_jax.inference import flags as model_flags
from train_jax.inference.classifier import Classifier, fit_image
from train_jax.inference.model_card import make_card
from train_jax.inference.program import export_stablehlo
from train_jax.inference.scores import calibration_error, top_k_accuracy
from train_jax.inference.space import write_space
from train_jax.output import checksums
from train_jax.output import workdir as wd
from train_jax.run import experiment, trained_model
from train_jax.run.trained_model import TrainedModel, load_model, load_weights
from train_jax.tasks import Classification
from weight_files import Pretrained


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run that has learnt something."""
    workdir = tmp_path_factory.mktemp("use") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "_plot", lambda *_: None)
        assert train.main(train_arguments(workdir, num_steps=60)) == 0
    return workdir


def test_load_model_gives_the_model_that_was_tested(run):
    trained = train_jax.load_model(str(run))
    test, mean, std = trained.load_test(), trained.task.mean, trained.task.std
    images = (test.image_BHWC / 255 - np.array(mean)) / np.array(std)
    classify = jax.jit(trained.model.apply)
    logits = classify(trained.variables, images.astype(np.float32))
    accuracy = (logits.argmax(axis=1) == test.label_B).mean()
    assert accuracy == json.loads((run / wd.SUMMARY).read_text())["test_accuracy"]


def test_the_package_has_no_other_names():
    with pytest.raises(AttributeError, match="train_jax' has no attribute 'predicted'"):
        _ = train_jax.predicted


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """A file with the weights of a small ResNet for colours."""
    model = ResNet(10, stage_sizes=(1, 1), width=8)
    image_BHWC = np.zeros((1, 32, 32, 3), np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), image_BHWC)
    file = tmp_path_factory.mktemp("resnet") / "a.safetensors"
    half = (0.5, 0.5, 0.5)
    pretrained = Pretrained(model, variables, (32, 32, 3), mean=half, std=half)
    resnet_jax.weights.save(file, pretrained, format="timm")
    return file


@pytest.fixture(scope="module", autouse=True)
def load_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_flags, "load_model", functools.cache(load_model))
        yield


@pytest.fixture(scope="module")
def test_images():
    return data.load("digits", "test[:90]")


def call(command, *arguments, code=0):
    assert command.main([str(argument) for argument in arguments]) == code


def test_evaluate_gives_the_summary_s_numbers(run, capsys):
    call(evaluate, "--workdir", run, "--split", "test[:90]", "--json")
    result = json.loads(capsys.readouterr().out)
    summary = json.loads((run / wd.SUMMARY).read_text())
    assert result["accuracy"] == pytest.approx(summary["test_accuracy"])
    assert result["loss"] == pytest.approx(summary["test_loss"], rel=1e-5)
    assert result["num_examples"] == 90 and result["step"] == 60
    classes = result["classes"].values()
    hits = sum(scores["num_examples"] * scores["accuracy"] for scores in classes)
    assert hits / 90 == pytest.approx(result["accuracy"])


def test_evaluate_takes_the_test_split_of_the_training(run, capsys):
    call(evaluate, "--workdir", run, "--json")
    result = json.loads(capsys.readouterr().out)
    assert (result["split"], result["num_examples"]) == ("test[:90]", 90)


def test_images_are_resized_when_they_are_asked_for():
    task = Classification((4, 4, 1), ("a",), (0.5,), (0.5,))
    trained = TrainedModel(task, vit_jax.ViT(1, 1, 1, 1, 1), {}, "vit")
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    split = data.ImageSplit(images, np.zeros(3, np.int32), ("a",))
    fitted = evaluate.fit_split(trained, split)
    assert fitted.is_streamed and fitted.image_BHWC.shape == (3, 4, 4, 1)
    expected = [fit_image(trained, image_HWC) for image_HWC in images]
    np.testing.assert_array_equal(fitted.image_BHWC[np.arange(3)], expected)
    assert evaluate.fit_split(trained, fitted[:0]).image_BHWC.shape == (0, 4, 4, 1)
    same = dataclasses.replace(split, image_BHWC=images[:, :4, :4])
    assert evaluate.fit_split(trained, same) is same
    cropping = dataclasses.replace(trained, crop_fraction=0.5)
    (image_HWC,) = evaluate.fit_split(cropping, same[:1]).image_BHWC[np.arange(1)]
    expected_HWC = fit_image(cropping, same.image_BHWC[0])
    assert (image_HWC != same.image_BHWC[0]).any()
    np.testing.assert_array_equal(image_HWC, expected_HWC)


def test_a_model_that_diverged_has_no_scores(run, capsys, monkeypatch):
    trained = load_model(run)
    broken = jax.tree.map(lambda x: x * np.nan, trained.variables)
    broken = dataclasses.replace(trained, variables=broken)
    monkeypatch.setattr(model_flags, "load_model", lambda *_, **__: broken)
    call(evaluate, "--workdir", run, code=2)
    captured = capsys.readouterr()
    assert captured.out == "" and "the loss of 'vit' is not finite" in captured.err


def test_evaluate_draws_and_prints_a_table(run, capsys, tmp_path):
    call(evaluate, "--workdir", run, "--out", tmp_path / "new")
    captured = capsys.readouterr()
    assert captured.err == f"{tmp_path / 'new' / 'confusion_matrix.png'}\n"
    assert Image.open(captured.err.strip()).size[0] > 300
    assert "calibration error" in captured.out and "examples" in captured.out


def test_evaluate_brings_images_to_the_model_s_size(resnet, capsys):
    call(evaluate, "--weights", resnet, "--dataset", "digits", "--json")
    result = json.loads(capsys.readouterr().out)
    assert result["num_examples"] == 360 and 0 <= result["accuracy"] <= 1


def test_evaluate_takes_pictures_of_many_sizes(run, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for label in range(10):
        folder = tmp_path / "pictures" / f"number_{label}"
        folder.mkdir(parents=True)
        for side in range(8, 18):
            pixels = rng.integers(0, 256, (side, side + label), np.uint8)
            Image.fromarray(pixels).save(folder / f"{side}.png")
    pictures = f"folder:{tmp_path / 'pictures'}"
    flags = ("--dataset", pictures, "--split", "train", "--json")
    call(evaluate, "--workdir", run, *flags)
    captured = capsys.readouterr()
    assert captured.err == (
        f"warning: the classes of {pictures!r} have other names than the model's, such "
        "as 'number_0' and '0'\n"
    )
    assert json.loads(captured.out)["num_examples"] == 90


def test_the_training_s_folder_is_recognised_by_other_names(tmp_path, monkeypatch):
    """Else its test split would be another tenth, which was trained on."""
    for label in "ab":
        (tmp_path / "pictures" / label).mkdir(parents=True)
        for value in range(20):
            picture = Image.new("L", (8, 8), 100 * (label == "b") + value)
            picture.save(tmp_path / "pictures" / label / f"{value}.png")
    monkeypatch.chdir(tmp_path)
    dataset = DatasetConfig(name="folder:pictures", split_seed=7, image_size=8)
    task = Classification((8, 8, 1), ("a", "b"), (0.5,), (0.5,))
    vit = vit_jax.ViT(1, 1, 1, 1, 1)
    trained = TrainedModel(task, vit, {}, "vit", dataset=dataset)

    def test_images(name):
        options = argparse.Namespace(dataset=name, data_dir=None, split=None)
        *_, split = evaluate._load_split(options, trained)
        return split.image_BHWC[np.arange(len(split))]

    expected = test_images(None)
    for name in (
        "folder:pictures/",
        "folder:./pictures",
        f"folder:{tmp_path}/pictures",
    ):
        np.testing.assert_array_equal(test_images(name), expected)


def test_a_picture_is_brought_to_the_input_as_in_the_training():
    task = Classification((2, 2, 1), ("a",), (0.5,), (0.5,))
    image_HWC = np.array([[[50], [100], [100], [200]]] * 2, np.uint8)
    seen = set()
    for resize in get_args(Resize):
        vit = vit_jax.ViT(1, 1, 1, 1, 1)
        trained = TrainedModel(task, vit, {}, "vit", resize=resize)
        fitted = fit_image(trained, image_HWC)
        expected = resize_image(image_HWC, (2, 2), how=resize, background=0)
        np.testing.assert_array_equal(fitted, expected)
        seen.add(fitted.tobytes())
    assert len(seen) == 3


def test_equal_probabilities_are_ranked_as_by_argmax():
    probability_MY = np.full((4, 4), 0.25)
    hits = [top_k_accuracy(probability_MY, np.full(4, label), 3) for label in range(4)]
    assert hits == [1, 1, 1, 0]


def test_scores_by_hand():
    probability_MY = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7]])
    label_M = np.array([0, 2, 0])
    assert top_k_accuracy(probability_MY, label_M, 1) == pytest.approx(1 / 3)
    assert top_k_accuracy(probability_MY, label_M, 2) == pytest.approx(2 / 3)
    expected = (abs(1 - 0.6) + abs(0 - 0.5) + abs(0 - 0.7)) / 3
    assert calibration_error(probability_MY, label_M) == pytest.approx(expected)


LOSSLESS = {
    "a.png": {},
    "palette.png": {"convert": "P"},
    "alpha.png": {"convert": "LA"},
    "rgb.png": {"convert": "RGB"},
    "rgba.png": {"convert": "RGBA"},
    "a.bmp": {},
    "a.tiff": {},
    "lzw.tif": {"compression": "tiff_lzw"},
    "a.webp": {"lossless": True, "convert": "RGB"},
    "a.gif": {},
    "a.pgm": {},
}


def test_one_picture_in_all_encodings(run, test_images, tmp_path, capsys):
    """The same probabilities in lossless ones; in lossy ones the same class."""
    index = 5
    picture = Image.fromarray(test_images.image_BHWC[index, ..., 0])
    for name, options in LOSSLESS.items():
        options = dict(options)
        picture.convert(options.pop("convert", "L")).save(tmp_path / name, **options)
    for name in ("lossy.jpg", "lossy.webp", "lossy.jp2"):
        picture.save(tmp_path / name, quality=95)
    wide = (test_images.image_BHWC[index, ..., 0].astype(np.uint16)) * 257
    Image.fromarray(wide).save(tmp_path / "wide.png")
    picture.convert("CMYK").save(tmp_path / "lossy_cmyk.jpg", quality=95)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "exif.png", exif=exif)
    call(predict, "--workdir", run, tmp_path, "--json", "--top_k", 10)
    result = json.loads(capsys.readouterr().out)
    tops = {
        os.path.basename(it["file"]): {x["class"]: x["probability"] for x in it["top"]}
        for it in result["predictions"]
    }
    assert tops.keys() == {path.name for path in tmp_path.iterdir()}
    expected = tops["a.png"]
    for name, top in tops.items():
        if name.startswith("lossy"):
            assert next(iter(top)) == next(iter(expected)), name
        else:
            assert top == expected, name
    trained = load_model(run)
    image = test_images.image_BHWC[index : index + 1]
    inputs = trained.task.normalize(image)
    logits = jax.jit(trained.model.apply)(trained.variables, inputs)
    probability_Y = jax.nn.softmax(logits)[0]
    for name, probability in expected.items():
        assert probability == pytest.approx(float(probability_Y[int(name)]), abs=1e-5)


def test_a_folder_of_forty_pictures(resnet, tmp_path, capsys):
    """Each is answered as the plain one in colour is, or named."""
    files = dict(LOSSLESS_COLOUR)
    for number, store in STORED.items():
        turned = store(COLOUR)
        files[f"exif {number}"] = pillow(turned, "PNG", exif=exif(number))
    shown = np.where(np.arange(24)[:, None, None] < 12, COLOUR, 255).astype(np.uint8)
    opacity = np.where(np.arange(24) < 12, 255, 0)[:, None]
    files["transparent"] = pillow(with_alpha(COLOUR, opacity), "PNG")
    files["over white"] = pillow(shown, "PNG")
    files |= {f"lossy {name}": content for name, (content, _) in LOSSY_COLOUR.items()}
    files["truncated"] = files["png"][: len(files["png"]) // 2]
    files["text"] = b"no picture"
    assert len(files) >= 40
    for name, content in files.items():
        (tmp_path / f"{name}.png").write_bytes(content)  # the name says nothing
    call(predict, "--weights", resnet, tmp_path, "--json", code=1)
    captured = capsys.readouterr()
    top = {
        pathlib.Path(it["file"]).stem: {x["class"]: x["probability"] for x in it["top"]}
        for it in json.loads(captured.out)["predictions"]
    }
    assert top.keys() == files.keys() - {"truncated", "text"}
    assert [name in captured.err for name in ("truncated.png", "text.png")] == [
        True
    ] * 2
    assert top.pop("transparent") == top.pop("over white") != top["png"]
    for name, answer in top.items():
        if name.startswith("lossy"):
            assert next(iter(answer)) == next(iter(top["png"])), name
        else:
            assert answer == top["png"], name


def test_transparent_pixels_are_white_or_the_background(run, tmp_path):
    picture = Image.new("LA", (8, 8), (0, 0))
    picture.save(tmp_path / "a.png")
    trained = load_model(run)
    for background in (255, 0):
        reader = predict.PictureReader(trained, background=background, invert=False)
        assert (reader.read(tmp_path / "a.png") == background).all()


def test_unreadable_files_are_named_and_the_others_done(run, tmp_path, capsys):
    Image.new("L", (8, 8)).save(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no picture")
    call(predict, "--workdir", run, tmp_path, tmp_path / "none.png", code=1)
    captured = capsys.readouterr()
    (line,) = captured.out.splitlines()
    assert line.startswith(str(tmp_path / "good.png"))
    lines = captured.err.splitlines()
    for line, name in zip(lines, ("half", "text", "none"), strict=True):
        assert line.startswith("python -m train_jax.predict: error: '")
        assert f"{name}.png' " in line


def test_paths_on_standard_input_and_csv(run, tmp_path, capsys, monkeypatch):
    files = [tmp_path / name for name in ("b.png", "a.png")]
    for file in files:
        Image.new("L", (8, 8)).save(file)
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{f}\n" for f in files)))
    call(predict, "--workdir", run, "-", "--csv", "--top_k", "2", "--batch_size", "1")
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    columns = ["class_1", "probability_1", "class_2", "probability_2"]
    assert rows[0] == ["file", *columns]
    assert [row[0] for row in rows[1:]] == [str(file) for file in files]
    assert rows[1][1:] == rows[2][1:]


def test_names_on_standard_input_may_be_any_bytes(run, tmp_path, capsys, monkeypatch):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    names = (
        os.fsencode(tmp_path / "caf") + b"\xe9.png\n" + os.fsencode(tmp_path / "a.png")
    )
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(names), "utf-8"))
    call(predict, "--workdir", run, "-", code=1)
    captured = capsys.readouterr()
    assert "a.png" in captured.out and "caf" in captured.err


def test_a_bright_border_is_noticed(run, test_images, tmp_path, capsys):
    pixels = test_images.image_BHWC[0, ..., 0]
    Image.fromarray(255 - pixels).save(tmp_path / "paper.png")
    Image.fromarray(pixels).save(tmp_path / "plain.png")
    trained = load_model(run)
    assert trained.task.border < 0.25
    call(predict, "--workdir", run, tmp_path, "--json", "--top_k", "10")
    captured = capsys.readouterr()
    warning, file = "warning: 1 of 2 pictures, such as", str(tmp_path / "paper.png")
    assert f"{warning} {file!r}, have a bright border" in captured.err
    assert "--invert" in captured.err
    plain = json.loads(captured.out)["predictions"][1]["top"]
    call(predict, "--workdir", run, tmp_path / "paper.png", "--json", "--invert",
         "--top_k", "10")  # fmt: skip
    captured = capsys.readouterr()
    assert captured.err == ""
    inverted = json.loads(captured.out)["predictions"][0]["top"]
    for a, b in zip(plain, inverted, strict=True):
        assert a["class"] == b["class"]
        assert a["probability"] == pytest.approx(b["probability"], abs=1e-6)


# Reads files in a process to which only jax, its parts and flatbuffers are known.
READER = """
import pathlib, sys
class Only:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("flax", "chex", "optax", "vit_jax", "resnet_jax",
                                  "train_jax", "weight_files", "tensorflow"):
            raise ImportError(name)
sys.meta_path.insert(0, Only())
import jax.export, numpy as np
for folder in map(pathlib.Path, sys.argv[1:]):
    content = bytearray((folder / "model.stablehlo").read_bytes())
    program = jax.export.deserialize(content)
    assert program.platforms == ("cpu", "cuda", "tpu")
    images = np.load(folder / "images.npy")
    for size in (1, 7, 256):
        out = program.call(images[:size])
        np.savez(folder / f"out_{size}.npz", **out)
"""


def test_stablehlo_is_opened_without_this_project(run, resnet, tmp_path):
    pytest.importorskip("flatbuffers")
    logits_of = {}
    for kind, flags in (("vit", ["--workdir", run]), ("resnet", ["--weights", resnet])):
        folder = tmp_path / kind
        folder.mkdir()
        file = folder / "model.stablehlo"
        call(export, *flags, "--format", "stablehlo", "--out", file)
        parser = model_flags.make_model_parser("", "")
        trained = model_flags.load_named_model(parser.parse_args(list(map(str, flags))))
        shape = (256, *trained.task.image_shape)
        images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        np.save(folder / "images.npy", images)
        inputs = trained.task.normalize(images)
        logits = jax.jit(trained.model.apply)(trained.variables, inputs)
        logits_of[folder] = np.asarray(logits)
    folders = list(map(str, logits_of))
    subprocess.run([sys.executable, "-c", READER, *folders], check=True)
    for folder, logits in logits_of.items():
        most = 1e-5 if folder.name == "vit" else 1e-4
        for size in (1, 7, 256):
            with np.load(folder / f"out_{size}.npz") as out:
                error = np.abs(out["logits"] - logits[:size]).max()
                assert error / np.abs(logits).max() < most, folder.name
                sums = out["probabilities"].sum(axis=1)
                np.testing.assert_allclose(sums, 1, rtol=1e-5)


def test_a_cpu_s_own_convolutions_are_not_exported(resnet):
    pytest.importorskip("flatbuffers")
    trained = load_weights(str(resnet))
    convolve = resnet_jax.conv_general_dilated
    model = trained.model.clone(conv_general_dilated=convolve)
    content = export_stablehlo(dataclasses.replace(trained, model=model))
    program = jax.export.deserialize(content).mlir_module()
    convolutions = 1 + 2 * 2 + 1  # the stem, two blocks, a projection
    assert program.count("stablehlo.convolution") == 3 * convolutions  # platforms


@pytest.mark.slow  # imports TensorFlow, which writes and reads a SavedModel
def test_savedmodel_is_opened_by_tensorflow(run, tmp_path):
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("needs TensorFlow, the extra [prepare]")
    script = """
import sys, numpy as np, tensorflow as tf
from train_jax import export
workdir, out, images = sys.argv[1:]
if export.main(["--workdir", workdir, "--format", "savedmodel", "--out", out]):
    sys.exit(2)
classify = tf.saved_model.load(out).signatures["serving_default"]
outputs = classify(tf.constant(np.load(images)))
np.savez(out + ".npz", **{name: value.numpy() for name, value in outputs.items()})
"""
    images = data.load("digits", "test[:7]").image_BHWC
    np.save(tmp_path / "images.npy", images)
    arguments = [str(run), str(tmp_path / "out"), str(tmp_path / "images.npy")]
    command = [sys.executable, "-c", script, *arguments]
    process = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if process.returncode == 2:  # what JAX writes may be newer than TensorFlow
        assert "cannot run what JAX" in process.stderr.splitlines()[-1]
        assert not (tmp_path / "out").exists()
        pytest.skip(process.stderr.splitlines()[-1])
    assert process.returncode == 0, process.stderr
    trained = load_model(run)
    inputs = trained.task.normalize(images)
    logits = jax.jit(trained.model.apply)(trained.variables, inputs)
    with np.load(tmp_path / "out.npz") as out:
        np.testing.assert_allclose(out["logits"], logits, atol=1e-4)


TESTED = ("--dataset", "digits", "--split", "test[:90]", "--json")


@pytest.fixture(scope="module")
def evaluated(run):
    """What the command evaluate says of the run."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        call(evaluate, "--workdir", run, *TESTED)
    return json.loads(printed.getvalue())


@pytest.mark.parametrize("format", ["safetensors", "npz", "hf"])
def test_weights_are_written_and_used_again(format, run, evaluated, tmp_path, capsys):
    out = tmp_path / ("hf" if format == "hf" else f"model.{format}")
    call(export, "--workdir", run, "--format", format, "--out", out, "--json")
    result = json.loads(capsys.readouterr().out)
    channels = vit_jax.weights.load(out).image_shape[2]
    assert channels == (3 if format == "hf" else 1)  # which its pipelines take
    assert result["bytes"] == sum(os.path.getsize(file) for file in result["files"])
    call(evaluate, "--weights", out, *TESTED)
    actual = json.loads(capsys.readouterr().out)
    for name in ("accuracy", "loss", "calibration_error"):
        assert actual[name] == pytest.approx(evaluated[name], rel=1e-5)


def of_another_mean(trained):
    task = dataclasses.replace(trained.task, mean=(0.25,))
    return dataclasses.replace(trained, task=task)


def of_oblong_images(trained):
    task = dataclasses.replace(trained.task, image_shape=(8, 4, 1))
    model = vit_jax.ViT(10, 4, 8, 1, 2, activation="gelu")
    variables = modules.variables(model, 1, 8, 4, 1)
    return dataclasses.replace(trained, task=task, model=model, variables=variables)


@pytest.mark.parametrize(
    ("format", "change", "message"),
    [
        (
            "hf",
            lambda trained: dataclasses.replace(trained, resize="pad"),
            "had config.dataset.resize 'pad'",
        ),
        ("hf", of_oblong_images, "transformers will not fill an oblong input"),
        ("npz", of_another_mean, "holds no mean and standard deviation"),
        ("npz", lambda trained: trained, "its readers stretch them, the training had"),
    ],
)
def test_what_a_format_cannot_say_of_the_images_is_told(
    format, change, message, run, tmp_path, capsys, monkeypatch
):
    trained = change(load_model(run))
    monkeypatch.setattr(model_flags, "load_model", lambda *_, **__: trained)
    call(export, "--workdir", run, "--format", format, "--out", tmp_path / "a")
    assert message in capsys.readouterr().err


def test_pictures_that_have_changed_since_the_training_are_told(
    run, capsys, monkeypatch
):
    call(evaluate, "--workdir", run)
    assert capsys.readouterr().err == ""
    load = trained_model.load_named_splits

    def load_changed(*args):
        return [dataclasses.replace(split, files_checksum=7) for split in load(*args)]

    monkeypatch.setattr(trained_model, "load_named_splits", load_changed)
    call(evaluate, "--workdir", run)
    error = capsys.readouterr().err
    assert error.startswith("warning: the pictures of 'digits' have changed since the")


def test_a_set_that_has_changed_since_the_training_is_refused(run, capsys, monkeypatch):
    load = trained_model.load_named_splits

    def load_renamed(*args):
        (split,) = load(*args)
        names = ("kitten", *split.class_names[1:])
        return [dataclasses.replace(split, class_names=names)]

    monkeypatch.setattr(trained_model, "load_named_splits", load_renamed)
    call(evaluate, "--workdir", run, code=2)
    error = capsys.readouterr().err
    assert "'digits' is not that of the training, which had '0', now 'kitten'" in error


def test_one_picture_is_a_batch_of_one(run, tmp_path, monkeypatch):
    sizes = []
    classify = Classifier.__call__

    def spy(classifier, images):
        sizes.append(classifier._batch_size)
        return classify(classifier, images)

    monkeypatch.setattr(Classifier, "__call__", spy)
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    call(predict, "--workdir", run, tmp_path / "a.png")
    assert sizes == [1]


@pytest.mark.parametrize(
    ("dataset", "text", "hub"),
    [
        ("folder:/home/me/pets", "a folder of pictures", None),
        ("digits", "digits", None),
        ("cifar10:3.0.2", "cifar10", ["cifar10"]),
    ],
)
def test_model_card_names_what_others_can_find(run, dataset, text, hub):
    trained = load_model(run)
    assert trained.dataset is not None
    named = dataclasses.replace(trained.dataset, name=dataset, test_split="train[90%:]")
    summary = {"test_accuracy": 0.5, "test_step": 3}
    card = make_card(dataclasses.replace(trained, dataset=named), summary)
    assert "/home/me" not in card
    assert f"50.00% of the split 'train[90%:]' of {text} are" in card
    assert yaml.safe_load(card.split("---")[1]).get("datasets") == hub


def test_a_model_card_without_pyyaml_is_an_error(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ValueError, match="a model card needs yaml: pip install"):
        make_card(load_model(run), {})


def test_model_card_states_the_measured_result(run, capsys):
    call(export, "--workdir", run, "--format", "hf")
    summary = json.loads((run / wd.SUMMARY).read_text())
    card = (run / wd.EXPORT / "hf" / "README.md").read_text()
    assert f"{summary['test_accuracy']:.2%} of the split 'test[:90]' of digits" in card
    assert card.startswith("---\n") and "pipeline_tag: image-classification" in card


def test_files_of_others_are_not_replaced_by_an_export(run, tmp_path, capsys):
    (tmp_path / "README.md").write_text("mine")
    call(export, "--workdir", run, "--format", "hf", "--out", tmp_path, code=2)
    assert "must be a folder that is new, empty or of an ear" in capsys.readouterr().err
    assert [it.read_text() for it in tmp_path.iterdir()] == ["mine"]
    folder = tmp_path / "hf"
    for _ in range(2):  # an earlier export may be replaced, also one that was killed
        call(export, "--workdir", run, "--format", "hf", "--out", folder)
        (folder / "config.json").unlink()


def test_a_space_does_not_say_where_the_data_lay(run, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "6.1.0")
    workdir = shutil.copytree(run, tmp_path / "run")
    checkpoint = workdir / wd.CHECKPOINTS / "60"
    file = checkpoint / "metadata" / "metadata"
    metadata = json.loads(file.read_text())
    metadata["config"] |= {
        "dataset.name": "folder:/home/me/pets",
        "dataset.data_dir": "/home/me/data",
        "init_from": "/home/me/run",
    }
    file.write_text(json.dumps(metadata))
    checksums.write_checksums(checkpoint)
    space = tmp_path / "space"
    write_space(space, workdir, step=60, run=0, title="vit on pictures")
    for copied in (space / "run").rglob("*"):
        assert copied.is_dir() or b"/home/me" not in copied.read_bytes(), copied
    loaded = load_model(space / "run")
    assert loaded.dataset is not None and loaded.dataset.name == "folder:pictures"


def test_a_picture_that_nobody_may_look_for_is_reported(run, tmp_path, capsys):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    too_long = tmp_path / ("x" * 300)
    call(predict, "--workdir", run, tmp_path / "a.png", too_long, code=1)
    captured = capsys.readouterr()
    assert "a.png" in captured.out and "xxx" in captured.err


def test_a_folder_for_results_is_made_before_the_evaluation(run, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "evaluate", lambda *_, **__: pytest.fail("too late"))
        call(evaluate, "--workdir", run, "--out", out, code=2)
    assert str(out) in capsys.readouterr().err


def test_a_space_holds_all_that_the_page_needs(run, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "6.1.0")
    folder, how = tmp_path / "space", {"step": 60, "run": 0, "title": "vit on digits"}
    write_space(folder, run, **how)
    needed = (folder / "requirements.txt").read_text()
    assert "orbax-checkpoint>=" in needed and "jax>=" in needed
    assert "pytest" not in needed and "gradio" not in needed
    header = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    assert header["sdk_version"] == "6.1.0"
    assert header["python_version"] == "{}.{}".format(*sys.version_info)
    script = """
import pathlib, sys
from train_jax.run.trained_model import load_model
assert load_model(pathlib.Path("run")).step == 60
for name in ("train_jax", "vit_jax", "resnet_jax", "weight_files"):
    file = pathlib.Path(sys.modules[name].__file__)
    assert file.parents[1] == pathlib.Path.cwd(), file
"""
    (folder / "script.py").write_text(script)
    command = [sys.executable, "script.py"]
    subprocess.run(command, cwd=folder, check=True)
    with pytest.raises(ValueError, match="--space must be an empty folder, got"):
        write_space(folder, run, **how)


def test_a_space_that_cannot_be_written_leaves_nothing(run, tmp_path, monkeypatch):
    folder, how = tmp_path / "space", {"step": 60, "run": 0, "title": "vit on digits"}

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    with monkeypatch.context() as patch:
        patch.setattr(importlib.metadata, "version", missing)
        with pytest.raises(ValueError, match="--space needs gradio to be installed"):
            write_space(folder, run, **how)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "6.1.0")
    with pytest.raises(OSError):
        write_space(folder, run, **how | {"step": 7})
    assert [*tmp_path.iterdir()] == []


def test_a_device_without_memory_is_one_line(run, monkeypatch, capsys):
    def evaluate_all(*args, **kwargs):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(evaluate, "evaluate", evaluate_all)
    call(evaluate, "--workdir", run, code=1)
    assert "the device has too little memory" in capsys.readouterr().err

    def read(*args, **kwargs):
        raise MemoryError("Unable to allocate 24.0 GiB")

    monkeypatch.setattr(evaluate, "evaluate", read)
    call(evaluate, "--workdir", run, code=1)
    assert "error: Unable to allocate 24.0 GiB" in capsys.readouterr().err


WRONG = {
    "evaluate": [
        ("", "one of the arguments --workdir --weights is required"),
        ("--workdir RUN --weights x", "not allowed with argument"),
        ("--workdir nothing", "workdir 'nothing' does not exist"),
        ("--workdir RUN --split test[", "split 'test[' is not understood"),
        ("--workdir RUN --split val", "has no split 'val'"),
        ("--workdir RUN --dataset imagenet_x", "imagenet_x"),
        ("--workdir RUN --dataset reverse", "must be of images"),
        ("--workdir RUN --batch_size 0", "--batch_size must be at least 1, got 0"),
        ("--workdir RUN --checkpoint 7", "checkpoint must be last, best or the step"),
        ("--workdir RUN --run 1", "run must be in [0, 0], got 1"),
        ("--weights RUN", "is a run's folder: use --workdir"),
        ("--workdir RUN --mean 0.5", "--mean is for --weights alone"),
        ("--workdir gs://a", "--workdir must be gs://BUCKET/FOLDER, got 'gs://a'"),
        ("--weights nothing.npz --dataset digits", "'nothing.npz' do not exist"),
        ("--weights README.md --dataset digits", "must be a file of: .npz"),
        ("--weights hf://x --dataset digits", "must be hf://owner/name"),
        ("--weights RESNET", "--dataset is required with --weights"),
        ("--weights RESNET --checkpoint best", "--checkpoint is for --workdir alone"),
        ("--weights RESNET --run 1", "--run is for --workdir alone"),
        ("--weights RESNET --dataset digits --mean 0.5", "--mean must have 3 values"),
        ("--weights RESNET --dataset digits --std x", "--std: must be numbers as in"),
        ("--weights RESNET --dataset digits --mean 125,123,114", "--mean must be a tu"),
        (
            "--weights RESNET --dataset digits --mean 0,0,0 --std 0,0,0",
            "--std must be a tuple of numbers in (0, 1]",
        ),
        ("--weights RESNET --image_size 3", "must be height and width as in"),
        ("--weights RESNET --class_names a,b --dataset digits", "10 classes, but 2"),
        ("--weights RESNET --num_heads 4 --dataset digits", "a ResNet has no heads"),
        ("--workdir RUN --out README.md", "File exists"),
    ],
    "demo": [
        ("--weights RESNET --space OUT", "--space takes a model by --workdir"),
        ("--workdir RUN --port x", "argument --port: invalid int value: 'x'"),
    ],
    "predict": [
        ("--workdir RUN", "the following arguments are required: PICTURE"),
        ("--workdir RUN EMPTY", "holds no picture"),
        ("--workdir RUN -", "no picture is named on standard input"),
        ("--workdir RUN a.png --top_k 0", "--top_k must be at least 1, got 0"),
        ("--workdir RUN a.png --batch_size 0", "--batch_size must be at least 1"),
        ("--workdir RUN a.png --background 256", "--background must be in [0, 255]"),
        ("--workdir RUN a.png --json --csv", "not allowed with argument"),
        ("--workdir RUN s3://a/b.png", "must be a path on this machine"),
    ],
    "export": [
        ("--workdir RUN", "the following arguments are required: --format"),
        ("--workdir RUN --format onnx", "invalid choice: 'onnx'"),
        ("--weights RESNET --format npz", "--out is required with --weights"),
        ("--weights RESNET --format npz --out OUT", "--format npz takes a ViT, not"),
        ("--weights RESNET --format hf --out OUT", "has no ResNet with stem 'small'"),
        ("--workdir RUN --format npz --out README.md/x", "File exists"),
    ],
}


@pytest.mark.parametrize(
    ("command", "flags", "message"),
    [(name, *row) for name, rows in WRONG.items() for row in rows],
)
def test_wrong_input_is_one_line(
    command, flags, message, run, resnet, tmp_path, capsys, monkeypatch
):
    module = importlib.import_module(f"train_jax.{command}")
    (tmp_path / "empty").mkdir()
    places = {"RUN": run, "RESNET": resnet, "EMPTY": tmp_path / "empty"}
    places["OUT"] = tmp_path / "out"
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    arguments = [str(places.get(word, word)) for word in flags.split()]
    try:
        code = module.main(arguments)
    except SystemExit as error:
        code = error.code
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert message in captured.err.splitlines()[-1]
    assert "Traceback" not in captured.err
    assert not (tmp_path / "out").exists()
