"""Start from weights: of a run of this project, of others, with another head."""

import dataclasses
import json
import shutil

import flax.traverse_util
import jax
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import train
import vit_jax
from tests import modules
from tests.train.tiny import (
    RESNET,
    SMALL_RESNET,
    compile_once,  # noqa: F401 (a fixture)
    tiny_config,
)
from train_jax.output import workdir as wd
from train_jax.run import experiment
from train_jax.run.setup import set_up
from train_jax.run.trained_model import load_model
from vit_jax import weights
from weight_files import Pretrained

STEPS = {"num_steps": 3, "optimizer.schedule": "constant"}


@pytest.fixture(scope="module", autouse=True)
def no_plots():
    """Draw no plots and print no table of layers: they are a third of the time."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_plot", "print_layers"):
            patch.setattr(experiment, name, lambda *_: None)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a trained run."""
    workdir = tmp_path_factory.mktemp("start") / "run"
    experiment.train_and_evaluate(tiny_config({"num_epochs": 6}), workdir)
    return workdir


def initial(**fields):
    """Draw the state that a run starts from: path → array."""
    state = set_up(tiny_config(fields)).init_state()
    return flat(state.params)


def flat(params):
    return flax.traverse_util.flatten_dict(jax.device_get(params), sep="/")


def test_a_run_starts_where_another_ended(run):
    trained = flat(load_model(run).variables["params"])
    started = initial(init_from=str(run))
    jax.tree.map(np.testing.assert_array_equal, started, trained)


def test_a_fine_tuned_model_is_better_than_a_fresh_one(run, tmp_path):
    short = STEPS | {"optimizer.learning_rate": 1e-4}
    losses = [
        experiment.train_and_evaluate(tiny_config(short | more), tmp_path / name)
        for name, more in (("tuned", {"init_from": str(run)}), ("fresh", {}))
    ]
    tuned, fresh = (summary["test_loss"] for summary in losses)
    assert tuned < 0.8 * fresh
    # config.json keeps where a run has started.
    for name, expected in (("tuned", str(run)), ("fresh", None)):
        config = json.loads((tmp_path / name / wd.CONFIG).read_text())
        assert config["init_from"] == expected


def test_another_size_other_channels_and_classes(run, tmp_path, capsys):
    """The position embedding is resized, the kernel adapted, the head drawn anew."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog", "fox"):
        (tmp_path / name).mkdir()
        for i in range(40):
            pixels = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    fields = {"dataset.name": f"folder:{tmp_path}", "dataset.train_split": "train"}
    fields |= {"dataset.val_split": None, "dataset.test_split": "test"}
    started = initial(init_from=str(run), **fields)
    assert "the head is initialised at random, for 3 classes" in capsys.readouterr().err
    trained = flat(load_model(run).variables["params"])
    resized = weights.resize_position_embedding(
        trained["pos_embedding"], (2, 2), (3, 3)
    )
    np.testing.assert_allclose(started["pos_embedding"], resized, atol=1e-6)
    kernel = trained["embedding/kernel"].reshape(16, 1, 16)
    np.testing.assert_allclose(
        started["embedding/kernel"].reshape(16, 3, 16),
        np.repeat(kernel, 3, axis=1) / 3,
        atol=1e-6,
    )
    assert started["head/kernel"].shape == (16, 3)
    same = "encoder/block_0/mlp/hidden/kernel"
    np.testing.assert_array_equal(started[same], trained[same])


def test_files_of_other_libraries(run, tmp_path):
    pretrained = load_model(run).to_pretrained()
    (file,) = weights.save(tmp_path / "a.npz", pretrained, format="npz")
    started = initial(init_from=str(file))
    trained = flat(pretrained.variables["params"])
    jax.tree.map(np.testing.assert_array_equal, started, trained)


def test_the_config_says_the_heads_if_the_weights_do_not(run, tmp_path):
    pretrained = load_model(run).to_pretrained()
    (file,) = weights.save(tmp_path / "a.safetensors", pretrained, format="timm")
    bare = tmp_path / "bare.safetensors"
    safetensors.numpy.save_file(safetensors.numpy.load_file(file), bare)
    with pytest.raises(ValueError, match="num_heads must be given"):
        weights.load(str(bare))
    fields = {"model.activation": "gelu", "model.norm_epsilon": 1e-6}
    started = initial(init_from=str(bare), **fields)
    trained = flat(pretrained.variables["params"])
    jax.tree.map(np.testing.assert_array_equal, started, trained)


def test_blocks_are_stacked_for_scan(run):
    started = initial(init_from=str(run), **{"model.scan": True})
    trained = flat(load_model(run).variables["params"])
    np.testing.assert_array_equal(
        started["encoder/blocks/mlp/hidden/kernel"][0],
        trained["encoder/block_0/mlp/hidden/kernel"],
    )


def test_a_frozen_backbone_stays_and_the_head_learns(run, tmp_path, capsys):
    epoch = {"num_epochs": 1, "optimizer.schedule": "constant"}
    fields = {**epoch, "init_from": str(run), "freeze": "backbone"}
    experiment.train_and_evaluate(tiny_config(fields), tmp_path / "run")
    assert "not changed" not in capsys.readouterr().err
    before = flat(load_model(run).variables["params"])
    after = flat(load_model(tmp_path / "run").variables["params"])
    for path in before:
        is_same = np.array_equal(before[path], after[path])
        assert is_same == (not path.startswith("head/")), path


def test_something_must_be_left_to_learn():
    fields = {"groups.all.params": ".", "groups.all.learning_rate": 0.0}
    with pytest.raises(ValueError, match="freeze every parameter"):
        set_up(tiny_config(fields))


def test_statistics_of_a_frozen_resnet_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "train_jax.run.model.create_model", lambda *_, **__: SMALL_RESNET
    )
    fields = {**RESNET, "batch_size": 32, **STEPS}
    run = tmp_path / "run"
    experiment.train_and_evaluate(tiny_config(fields), run)
    fields |= {"init_from": str(run), "freeze": "backbone"}
    experiment.train_and_evaluate(tiny_config(fields), tmp_path / "frozen")
    before, after = (
        load_model(folder).variables["batch_stats"]
        for folder in (run, tmp_path / "frozen")
    )
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_a_resumed_run_needs_no_weights_and_ends_in_the_same_bits(run, tmp_path):
    (tmp_path / "source").mkdir()
    source = tmp_path / "source" / "run"
    shutil.copytree(run, source)
    fields = {"init_from": str(source), "num_steps": 8, "checkpoint.every_steps": 2}
    config = tiny_config(fields)
    experiment.train_and_evaluate(config, tmp_path / "whole")
    asked = iter([False, True])
    with pytest.raises(experiment.Stopped):
        experiment.train_and_evaluate(
            config, tmp_path / "parts", should_stop=lambda: next(asked, True)
        )
    shutil.rmtree(source)
    experiment.train_and_evaluate(config, tmp_path / "parts")
    a, b = (flat(load_model(tmp_path / it).variables) for it in ("whole", "parts"))
    jax.tree.map(np.testing.assert_array_equal, a, b)


def _fail(run, capsys, **fields):
    arguments = ["--config", "configs/vit_digits.py", "--workdir", "/nowhere/at/all"]
    config = {
        "model.patch_size": 4,
        "model.width": 16,
        "model.depth": 1,
        "model.num_heads": 2,
        "init_from": run,
        **fields,
    }
    arguments += [f"--config.{k}={v}" for k, v in config.items()]
    assert train.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    return line


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"init_from": "no/such"}, "config.init_from 'no/such': weights 'no/such' do"),
        ({"init_from": "s3://b/x"}, "config.init_from 's3://b/x': it must be a path"),
        ({"init_from": "hf://x"}, "must be hf://owner/name"),
        ({"init_from": "README.md"}, "must be a file of: .npz"),
        ({"model.width": 32}, "have other shapes than the model: 'params/cls"),
        ({"model.depth": 2}, "lack the parameters 'params/encoder/block_1"),
        (
            {"model.pool": "mean"},
            "the model does not have: 'params/cls'",
        ),
        (
            {"model.num_heads": 4},
            "config.init_from: model.num_heads must be 2, as in",
        ),
        ({"model.activation": "relu"}, "model.activation must be 'gelu_tanh'"),
        ({"freeze": "head"}, "config.freeze must be one of backbone, or None, got"),
        ({"init_from": ""}, "config.init_from must be a string that is not empty"),
    ],
)
def test_error_lines(run, capsys, fields, message):
    assert message in _fail(run, capsys, **fields)


def test_a_run_without_a_checkpoint_is_named_by_the_field(run, tmp_path, capsys):
    (tmp_path / "empty" / wd.CHECKPOINTS).mkdir(parents=True)
    source = str(tmp_path / "empty")
    line = _fail(run, capsys, init_from=source)
    assert f"config.init_from {source!r}: workdir {source!r} holds no check" in line


def test_another_kind_of_model_is_refused(run):
    with pytest.raises(ValueError, match=r"is a ViT, config\.model is a ResNet"):
        set_up(tiny_config({"model.name": "resnet20", "init_from": str(run)}))


def test_names_of_classes_decide_whether_the_head_stays():
    from train_jax.run.pretrained import fit_pretrained
    from train_jax.tasks import Classification

    model = vit_jax.ViT(2, patch_size=4, width=8, depth=1, num_heads=2)
    start = Pretrained(model, modules.variables(model, 1, 8, 8, 1), (8, 8, 1))
    for names, stays in ((None, True), (("a", "b"), True), (("a", "c"), False)):
        named = dataclasses.replace(start, class_names=names)
        task = Classification((8, 8, 1), ("a", "b"), (0.5,), (0.5,))
        assert ("params/head/kernel" in fit_pretrained(named, model, task)) == stays
