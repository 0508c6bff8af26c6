"""Config files: those that cannot be read, and fields that refer to each other."""

import pytest

from train_jax.config.config import load_config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "--config must name a readable file"),
        (
            "from train_jax.config.fields import Config\nget_config = Config\n",
            "TypeError",
        ),
        ("def get_config(:\n", "SyntaxError"),
        ("import no_such_module\n", "ModuleNotFoundError"),
        ("x = 1\n", "does not define get_config"),
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


def test_a_file_may_define_dataclasses(tmp_path):
    path = tmp_path / "fields.py"
    path.write_text(
        "from __future__ import annotations\nimport dataclasses\n"
        "@dataclasses.dataclass\nclass Fields:\n    seed: int = 3\n"
        "def get_config():\n"
        "    return dataclasses.asdict(Fields()) | {'model': {'name': 'resnet18'}}\n"
    )
    assert load_config(str(path), {}).seed == 3


@pytest.mark.parametrize("value", ["{[1]}", "(" * 9999, "1.0.0", "\0"])
def test_a_value_that_is_no_literal_is_a_string(value):
    with pytest.raises(ValueError, match=r"config.seed must be an integer in"):
        load_config("vit_digits", {"seed": value})


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
    assert load_config(referring, given | {"augment.flip": "random"}).augment.flip


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
def test_wrong_values_in_a_file_with_references(referring, changes, message):
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
