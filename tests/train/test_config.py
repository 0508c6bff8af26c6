"""Configs: complete, typed, and refused with a line that says what is allowed."""

import dataclasses
import functools
import importlib.util
import json
import pathlib

import jax
import pytest
from ml_collections import ConfigDict, FrozenConfigDict

from train_jax.config.config import (
    from_config_dict,
    load_config,
    resolve,
    to_json,
)
from train_jax.config.fields import TABLE
from train_jax.config.models import MODELS, create_model, model_fields
from train_jax.learning.state import count_parameters
from train_jax.tasks import Classification, Translation

VIT = {"patch_size": 4, "width": 16, "depth": 1, "num_heads": 2}
SMALL = {f"model.{name}": value for name, value in VIT.items()}

CONFIGS = sorted(pathlib.Path("configs").glob("*.py"))

# The number of parameters that each config trains, and its task.
DIGITS = tuple("0123456789")
MNIST = Classification((28, 28, 1), DIGITS, mean=(0.5,), std=(0.5,))
IMAGENET = Classification(
    (224, 224, 3), tuple(map(str, range(1000))), mean=(0.5,) * 3, std=(0.5,) * 3
)
CIFAR10 = Classification((32, 32, 3), DIGITS, mean=(0.5,) * 3, std=(0.5,) * 3)
EXPECTED = {
    "vit_digits": (152_202, Classification((8, 8, 1), DIGITS, mean=(0.5,), std=(0.5,))),
    "vit_mnist": (605_066, MNIST),
    "vit_mnist_reference": (605_066, MNIST),
    "vit_mnist_best": (612_171, MNIST),
    "vit_cifar10": (2_697_226, CIFAR10),
    "vit_conv_cifar10": (1_909_259, CIFAR10),
    "vit_patches_cifar10": (1_806_347, CIFAR10),
    "finetune_vit_cifar10": (
        21_669_514,
        Classification((224, 224, 3), DIGITS, mean=(0.5,) * 3, std=(0.5,) * 3),
    ),
    "fast_cifar10": (1_971_640, CIFAR10),
    "fast_cifar10_plain": (4_422_648, CIFAR10),
    "resnet20_cifar10": (269_722, CIFAR10),
    "resnet18_cifar10": (11_173_962, CIFAR10),
    "resnet18_short_cifar10": (11_173_962, CIFAR10),
    # 22,050,664 without class token and position embedding.
    "vit_s16_imagenet": (22_050_664 - 384 - 197 * 384, IMAGENET),
    "resnet18_mnist": (11_172_810, MNIST),
    "ablation_vit_mnist": (155_082, MNIST),
    "transformer_reverse": (85_387, Translation(10, 16, 16)),
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_builds_its_model(path):
    config = load_config(str(path), {})
    num_params, task = EXPECTED[path.stem]
    model = create_model(
        config.model.name,
        dtype="float32",
        **task.model_fields,
        **config.model.arguments,
    )
    init = functools.partial(model.init, train=False)
    variables = jax.eval_shape(init, jax.random.key(0), *task.inputs())
    assert count_parameters(variables["params"]) == num_params


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_says_what_it_does(path):
    spec = importlib.util.spec_from_file_location("config", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert f" --config configs/{path.name}\n" in (module.__doc__ or "")
    page = path.parents[1] / "docs" / "training.md"
    assert f"| `{path.stem}` |" in page.read_text()


def test_resolve_gives_every_field_its_default():
    config = resolve(SMALL)
    assert config.optimizer.learning_rate == TABLE["optimizer.learning_rate"].default
    arguments = {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "nesterov": False}
    assert config.optimizer.arguments == arguments
    assert config.model.arguments["pool"] == "cls"  # the module's own default
    assert set(to_json(config)) == (
        set(TABLE)
        | {f"model.{name}" for name in model_fields("vit")}
        | {f"optimizer.{name}" for name in ("b1", "b2", "eps", "nesterov")}
    )


def test_a_config_cannot_be_changed():
    config = resolve(SMALL)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1  # type: ignore
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.dataset.name = "mnist"  # type: ignore


SWEPT = SMALL | {
    "dataset.mean": [0.5],
    "optimizer.name": "sgd",
    "sweep.optimizer.momentum": (0.5, 0.9),
    "sweep.label_smoothing": [0.0, 0.1],
}


@pytest.mark.parametrize("path", [*CONFIGS, None], ids=str)
def test_a_config_comes_back_from_json(path):
    config = load_config(str(path), {}) if path else resolve(SWEPT)
    text = json.dumps(to_json(config))
    assert resolve(json.loads(text)) == config
    assert json.loads(text) == to_json(config)


def test_a_sweep_has_dotted_fields():
    config = resolve(SWEPT)
    momenta, smoothings = (0.5, 0.9), (0.0, 0.1)
    expected = {"optimizer.momentum": momenta, "label_smoothing": smoothings}
    assert config.sweep == expected
    assert to_json(config)["sweep.optimizer.momentum"] == [0.5, 0.9]


def test_what_get_config_may_return():
    sections = {"model": VIT, "num_epochs": 3, "dataset": {"name": "MNIST"}}
    config = resolve(SMALL | {"num_epochs": 3, "dataset.name": "mnist"})
    for returned in (sections, ConfigDict(sections), FrozenConfigDict(sections)):
        assert from_config_dict(returned) == config
    model = dataclasses.replace(config.model, arguments=VIT)
    assert from_config_dict(dataclasses.replace(config, model=model)) == config
    broken = dataclasses.replace(config, batch_size=0)
    with pytest.raises(ValueError, match=r"config\.batch_size must be an integer"):
        from_config_dict(broken)


@pytest.mark.parametrize("config", ["vit_digits", None])
def test_a_config_in_python_has_fields(config):
    message = rf"config must be a ConfigDict or a dict, got {type(config).__name__}"
    with pytest.raises(ValueError, match=message):
        from_config_dict(config)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_fields_with_rules(name):
    given = {"model.patch_size": 4, "model.width": 8}
    given |= {"model.depth": 1, "model.num_heads": 2, "model.mlp_dim": 8}
    given |= {"model.encoder_depth": 1, "model.decoder_depth": 1}
    known = {f"model.{field}" for field in model_fields(name)}
    config = resolve({"model.name": name} | {k: given[k] for k in given if k in known})
    assert config.model.name == name
    assert set(config.model.arguments) == set(model_fields(name))


@pytest.fixture
def config_file(tmp_path):
    """A config file that sets little."""
    path = tmp_path / "small.py"
    path.write_text(
        "def get_config():\n"
        "    return {'model': {'name': 'resnet18'}, 'batch_size': 32,\n"
        "            'dataset': {'mean': [0.5], 'std': (0.25,)}}\n"
    )
    return str(path)


def test_load_config_applies_overrides(config_file):
    overrides = {
        "optimizer.learning_rate": "3e-4",
        "optimizer.clip_norm": "1",
        "augment.trivial_augment": "true",
        "num_steps": "None",
        "dataset.name": "cifar10",
        "model.stem": "imagenet",
    }
    config = load_config(config_file, overrides)
    assert config.optimizer.learning_rate == 3e-4
    assert config.optimizer.clip_norm == 1
    assert config.augment.trivial_augment is True
    assert config.num_steps is None
    assert config.dataset.name == "cifar10"
    assert config.model.arguments["stem"] == "imagenet"
    assert config.batch_size == 32
    assert config.dataset.mean == (0.5,)


@pytest.mark.parametrize(
    ("field", "text", "message"),
    [
        ("batch_size", "0", "config.batch_size must be an integer, at least 1, got 0"),
        ("batch_size", "3.5", "must be an integer, at least 1, got 3.5"),
        ("batch_size", "many", "must be an integer, at least 1, got 'many'"),
        ("batch_size", "True", "must be an integer, at least 1, got True"),
        (
            "num_steps",
            "-5",
            "config.num_steps must be an integer in [1, 2147483647], or None",
        ),
        (
            "num_epochs",
            "0",
            "config.num_epochs must be an integer in [1, 2147483647], got 0",
        ),
        ("seed", "-1", "config.seed must be an integer in [0, 2147483647], got -1"),
        (
            "augment.flip",
            "True",
            "config.augment.flip must be one of random, alternating",
        ),
        ("label_smoothing", "1.0", "must be a number in [0, 1), got 1.0"),
        ("ema_decay", "-0.1", "must be a number in [0, 1), or None, got -0.1"),
        ("dtype", "float16", "must be one of float32, bfloat16, auto, got 'float16'"),
        (
            "optimizer.name",
            "sam",
            "config.optimizer.name must be one of adamw, adam, sgd, muon, adabelief",
        ),
        (
            "optimizer.schedule",
            "step",
            "config.optimizer.schedule must be one of constant, cosine, linear, rsqrt",
        ),
        ("optimizer.learning_rate", "-1", "must be a number above 0, got -1"),
        ("optimizer.learning_rate", "1e999", "must be a number above 0, got inf"),
        ("optimizer.b1", "1", "must be a number in [0, 1), got 1"),
        (
            "optimizer.momentum",
            "0.5",
            "config.optimizer.momentum is unknown: optimizer 'adamw' has b1, b2, eps, "
            "nesterov; momentum is an argument of sgd",
        ),
        (
            "sweep.optimizer.momentum",
            "(0.5, 0.9)",
            "config.sweep.optimizer.momentum is unknown: optimizer 'adamw' has b1, b2",
        ),
        ("sweep.optimizer.factored", "(True,)", "factored is an argument of adafactor"),
        ("sweep.dropout", "(0, 1)", "config.sweep.dropout is unknown; known fields"),
        ("sweep.seed", "(0, 1)", "cannot be swept in one program; those that can: opt"),
        ("dataset.name", "", "must be a string that is not empty, got ''"),
        ("dataset.std", "(0,)", "must be a tuple of numbers in (0, 1]"),
        ("dataset.mean", "0.5", "must be a tuple of numbers in [0, 1], one for"),
        ("model.name", "vgg", "config.model.name must be one of vit, vit_ti16,"),
        ("model.stem", "3", "config.model.stem must be "),
        ("model.patch_size", "4", "config.model.patch_size is unknown: model "),
        ("learning_rate", "1", "did you mean config.optimizer.learning_rate?"),
        ("optimizer.lr", "1", "config.optimizer.lr is unknown; known fields: config."),
        ("augment", "1", "config.augment is unknown"),
        ("checkpoint.keep", "0", "must be an integer, at least 1, got 0"),
    ],
)
def test_wrong_values_are_named(config_file, field, text, message):
    with pytest.raises(ValueError) as caught:
        load_config(config_file, {field: text})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "field", ["adan.b3", "rmsprop.decay", "adadelta.rho", "sgd.momentum"]
)
def test_decay_rates_are_below_1(field):
    name, argument = field.split(".")
    given = {"optimizer.name": name, f"optimizer.{argument}": 1.0}
    with pytest.raises(ValueError, match=rf"{argument} must be a number in \[0, 1\)"):
        resolve(SMALL | {"model.name": "vit"} | given)


def test_a_model_field_without_default_is_required():
    given = {k: v for k, v in SMALL.items() if k != "model.width"}
    with pytest.raises(ValueError, match=r"config\.model\.width is missing"):
        resolve(given)


@pytest.mark.parametrize(
    ("name", "canonical"),
    [("MNIST", "mnist"), ("Cifar10:3.0.2", "cifar10:3.0.2"), ("Digits", "digits")],
)
def test_dataset_names_are_canonical(config_file, name, canonical):
    config = load_config(config_file, {"dataset.name": name})
    assert config.dataset.name == canonical
