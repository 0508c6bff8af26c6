"""Configs: complete, typed, and refused with a line that says what is allowed."""

import functools
import importlib.util
import pathlib

import jax
import pytest

from tests.train.tiny import TINY, tiny_config
from train_jax.config.config import FIELDS, flatten, load_config, resolve
from train_jax.config.models import (
    MODELS,
    count_parameters,
    create_model,
    init_variables,
    model_fields,
)
from train_jax.tasks import Classification, Translation

CONFIGS = sorted(pathlib.Path("configs").glob("*.py"))

# The number of parameters that each config trains, and its task.
DIGITS = tuple("0123456789")
MNIST = Classification((28, 28, 1), DIGITS, mean=(0.5,), std=(0.5,))
CIFAR10 = Classification((32, 32, 3), DIGITS, mean=(0.5,) * 3, std=(0.5,) * 3)
EXPECTED = {
    "vit_digits": (152_202, Classification((8, 8, 1), DIGITS, mean=(0.5,), std=(0.5,))),
    "vit_mnist": (605_066, MNIST),
    "vit_mnist_reference": (605_066, MNIST),
    "vit_cifar10": (8_335_114, CIFAR10),
    "resnet18_cifar10": (11_173_962, CIFAR10),
    "resnet18_mnist": (11_172_810, MNIST),
    "ablation_vit_mnist": (155_082, MNIST),
    "transformer_reverse": (85_387, Translation(10, 16, 16)),
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_builds_its_model(path):
    config = load_config(str(path), {})
    fields = dict(config.model)
    num_params, task = EXPECTED[path.stem]
    model = create_model(
        fields.pop("name"), dtype=config.dtype, **task.model_fields, **fields
    )
    variables = jax.eval_shape(
        functools.partial(init_variables, model, inputs=task.inputs()),
        jax.random.key(0),
    )
    assert count_parameters(variables["params"]) == num_params


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_says_what_it_does(path):
    spec = importlib.util.spec_from_file_location("config", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert f" --config configs/{path.name}\n" in (module.__doc__ or "")


def test_resolve_gives_every_field_its_default():
    config = resolve(TINY)
    flat = flatten(config)
    assert flat["optimizer.b2"] == FIELDS["optimizer.b2"][0]
    assert flat["model.pool"] == "cls"  # the module's own default
    assert set(FIELDS) | {f"model.{name}" for name in model_fields("vit")} == set(flat)


def test_resolve_locks_the_config():
    config = tiny_config()
    with pytest.raises(AttributeError):
        config.learning_rate = 1.0


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_fields_with_rules(name):
    given = {"model.patch_size": 4, "model.width": 8}
    given |= {"model.depth": 1, "model.num_heads": 2, "model.mlp_dim": 8}
    given |= {"model.encoder_depth": 1, "model.decoder_depth": 1}
    known = {f"model.{field}" for field in model_fields(name)}
    config = resolve({"model.name": name} | {k: given[k] for k in given if k in known})
    assert config.model.name == name


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
        "augment.flip": "true",
        "num_steps": "None",
        "dataset.name": "cifar10",
        "model.stem": "imagenet",
    }
    config = load_config(config_file, overrides)
    assert config.optimizer.learning_rate == 3e-4
    assert config.optimizer.clip_norm == 1
    assert config.augment.flip is True
    assert config.num_steps is None
    assert config.dataset.name == "cifar10"
    assert config.model.stem == "imagenet"
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
        ("augment.flip", "1", "config.augment.flip must be True or False, got 1"),
        ("label_smoothing", "1.0", "must be a number in [0, 1), got 1.0"),
        ("ema_decay", "-0.1", "must be a number in [0, 1), or None, got -0.1"),
        ("dtype", "float16", "must be one of float32, bfloat16, got 'float16'"),
        (
            "optimizer.name",
            "lion",
            "config.optimizer.name must be one of adamw, adam, sgd, got 'lion'",
        ),
        (
            "optimizer.schedule",
            "step",
            "config.optimizer.schedule must be one of constant, cosine, linear, got",
        ),
        ("optimizer.learning_rate", "-1", "must be a number above 0, got -1"),
        ("optimizer.learning_rate", "1e999", "must be a number above 0, got inf"),
        ("optimizer.momentum", "1", "must be a number in [0, 1), got 1"),
        ("dataset.name", "", "must be a string that is not empty, got ''"),
        ("dataset.std", "(0,)", "must be a tuple of positive numbers"),
        ("dataset.mean", "0.5", "must be a tuple of numbers, one for each channel"),
        ("model.name", "vgg", "config.model.name must be one of vit, vit_ti16,"),
        ("model.stem", "3", "config.model.stem must be a string that is not empty"),
        ("model.patch_size", "4", "config.model.patch_size is unknown"),
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


def test_a_model_field_without_default_is_required():
    given = {k: v for k, v in TINY.items() if k != "model.width"}
    with pytest.raises(ValueError, match=r"config\.model\.width is missing"):
        resolve(given)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "--config must name a readable file"),
        ("def get_config(:\n", "SyntaxError"),
        ("import no_such_module\n", "ModuleNotFoundError"),
        ("x = 1\n", "has no attribute 'get_config'"),
        ("def get_config():\n    return 3\n", "must return a ConfigDict or a dict"),
        ("def get_config():\n    return {'batchsize': 3}\n", "config.batch_size?"),
        ("def get_config():\n    assert False, 'never'\n", "AssertionError: never"),
        ("def get_config():\n    raise RuntimeError('no')\n", "RuntimeError: no"),
        ("def get_config():\n    return {3: 4}\n", "config.3 is unknown"),
        (
            "import numpy as np\ndef get_config():\n"
            "    return {'model': {'name': 'resnet18'},\n"
            "            'dataset': {'mean': np.ones(3)}}\n",
            "config.dataset.mean must be a tuple of numbers",
        ),
    ],
)
def test_unusable_config_files(tmp_path, text, message):
    path = tmp_path / "bad.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError) as caught:
        load_config(str(path), {})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


REFERRING = """
from ml_collections import ConfigDict, config_dict

def get_config(size="64"):
    config = ConfigDict({
        "model": {"name": "resnet18"}, "num_epochs": 20, "batch_size": int(size),
    })
    config.optimizer = ConfigDict({
        "warmup_epochs": config.get_ref("num_epochs") / 10,
        "weight_decay": 1,
    })
    config.eval_batch_size = config.get_ref("batch_size") * 2
    config.seed = config_dict.placeholder(int)
    config.num_seeds = config_dict.required_placeholder(int)
    return config
"""


@pytest.fixture
def referring(tmp_path):
    """A config file whose fields refer to each other."""
    path = tmp_path / "referring.py"
    path.write_text(REFERRING)
    return str(path)


def test_references_follow_what_they_refer_to(referring):
    given = {"num_seeds": "1", "seed": "3"}
    config = load_config(referring, given)
    assert (config.optimizer.warmup_epochs, config.eval_batch_size) == (2.0, 128)
    changes = {"num_epochs": "100", "optimizer.weight_decay": "0.5"}
    config = load_config(f"{referring}:32", given | changes)
    assert (config.optimizer.warmup_epochs, config.optimizer.weight_decay) == (10, 0.5)
    assert (config.batch_size, config.eval_batch_size, config.seed) == (32, 64, 3)
    config = load_config(referring, given | {"optimizer.warmup_epochs": "1"})
    assert config.optimizer.warmup_epochs == 1  # of its own now
    # A field that the file does not mention, in a section that it does not have.
    assert load_config(referring, given | {"augment.flip": "True"}).augment.flip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": "3"}, "config.num_seeds must be given"),
        ({"num_seeds": "1"}, "config.seed must be an integer in [0, 2147483647], got"),
        ({"num_seeds": "1", "seed": "0", "num_seeds.x": "1"}, "num_seeds.x is unknown"),
        ({"num_epochs": "ten"}, "config.num_epochs must be an integer in [1, 2147483"),
        ({"model.name": "vgg"}, "config.model.name must be one of vit, vit_ti16"),
    ],
)
def test_what_cannot_be_referred_to_is_named(referring, changes, message):
    with pytest.raises(ValueError) as caught:
        load_config(referring, changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_reference_that_cannot_be_computed_is_named(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        "    config = ConfigDict({'ema_decay': 0.5, 'model': {'name': 'resnet18'}})\n"
        "    config.num_epochs = 8 // config.get_ref('ema_decay')\n"
        "    return config\n"
    )
    with pytest.raises(ValueError, match=r"config\.num_epochs could not be computed: "):
        load_config(str(path), {"ema_decay": "0.0"})


@pytest.mark.parametrize(
    ("name", "canonical"),
    [("MNIST", "mnist"), ("Cifar10:3.0.2", "cifar10:3.0.2"), ("Digits", "digits")],
)
def test_a_set_has_one_name(config_file, name, canonical):
    config = load_config(config_file, {"dataset.name": name})
    assert config.dataset.name == canonical
