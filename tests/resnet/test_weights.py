"""Weights that others trained: their published test errors."""

import functools
import os
import pathlib

import jax
import numpy as np
import pytest

import resnet_jax
from resnet_jax import weights
from resnet_jax.weights import torch
from tests import modules
from weight_files import to_theirs

# The folder with akamaster's files (github.com/akamaster/pytorch_resnet_cifar10).
FOLDER = os.environ.get("CIFAR_RESNETS")
# The suite compiles without optimisation, which this would take too long with.
OPTIONS = {"xla_backend_optimization_level": 3}


@pytest.mark.slow  # 10,000 images, three networks
@pytest.mark.tfds
@pytest.mark.parity
@pytest.mark.skipif(FOLDER is None, reason="CIFAR_RESNETS names no folder")
@pytest.mark.parametrize(
    ("name", "num_errors"), [("ResNet20", 827), ("ResNet32", 737), ("ResNet44", 690)]
)
def test_published_weights_have_their_published_error(name, num_errors):
    pytest.importorskip("torch")
    from train_jax import data
    from train_jax.learning.augment import normalize

    (path,) = pathlib.Path(str(FOLDER)).glob(f"{name.lower()}-*.th")
    loaded = weights.load(path)
    assert loaded.model == getattr(resnet_jax, name)(10)

    @functools.partial(jax.jit, compiler_options=OPTIONS)
    def classify(image_BHWC):
        image_BHWC = normalize(image_BHWC, mean=loaded.mean, std=loaded.std)
        return loaded.model.apply(loaded.variables, image_BHWC).argmax(axis=-1)

    (test,) = data.load_splits("cifar10", "test", data_dir=None, manual_dir=None)
    parts = np.split(test.image_BHWC, 20)
    predicted_M = np.concatenate([classify(part) for part in parts])
    assert (predicted_M != test.label_B).sum() == num_errors


def test_what_hugging_face_s_config_must_say():
    names = ("convolution.weight", "normalization.weight")
    prefix = "resnet.embedder.embedder"
    arrays = {f"{prefix}.{name}": np.ones((8, 3, 7, 7)) for name in names}
    with pytest.raises(ValueError, match=r"config\.json lacks 'depths'"):
        weights.load(arrays)


@pytest.mark.parametrize("stem", ["small", "imagenet"])
@pytest.mark.parametrize("names", ["torchvision", "cifar"])
def test_state_dict_of_a_resnet_in_pytorch(names, stem):
    model = resnet_jax.ResNet18(10, width=8, stem=stem)
    variables = modules.variables(model, 1, 32, 32, 3)
    state = to_theirs(torch.table(model), variables)
    state = torch.add_counters(state)
    if names == "cifar":
        state = {
            f"module.{name}".replace("downsample", "shortcut").replace(
                "fc", "linear"
            ): x
            for name, x in state.items()
        }
    loaded = weights.load(state)
    assert loaded.model == model
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, variables)


def test_wrong_state_dicts_get_one_line():
    model = resnet_jax.ResNet20(10)
    variables = modules.variables(model, 1, 32, 32, 3)
    state = to_theirs(torch.table(model), variables)
    with pytest.raises(ValueError, match="not a ResNet of torchvision, timm or"):
        weights.load({"attention.weight": np.ones(3)})
    with pytest.raises(ValueError, match=r"have, but should not, 'extra'$"):
        weights.load(state | {"extra": np.ones(3)})
    del state["layer1.0.bn1.running_var"]
    with pytest.raises(ValueError, match=r"lack 'layer1\.0\.bn1\.running_var'$"):
        weights.load(state)
    state = to_theirs(torch.table(model), variables)
    state["layer1.0.bn1.bias"] = np.ones(5, np.float32)
    with pytest.raises(ValueError, match=r"bias \(5,\) instead of \(16,\)'$"):
        weights.load(state)
