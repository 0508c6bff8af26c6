"""Weights that others trained: their published test errors."""

import functools
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import resnet_jax
from resnet_jax import from_torch

# The folder with akamaster's files (github.com/akamaster/pytorch_resnet_cifar10).
FOLDER = os.environ.get("CIFAR_RESNETS")
# The suite compiles without optimisation, which this would take too long with.
OPTIONS = {"xla_backend_optimization_level": 3}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.slow  # 10,000 images, three networks
@pytest.mark.tfds
@pytest.mark.parity
@pytest.mark.skipif(FOLDER is None, reason="CIFAR_RESNETS names no folder")
@pytest.mark.parametrize(
    ("name", "num_errors"), [("ResNet20", 827), ("ResNet32", 737), ("ResNet44", 690)]
)
def test_published_weights_have_their_published_error(name, num_errors):
    torch = pytest.importorskip("torch")
    from train_jax import data
    from train_jax.learning.augment import normalize

    (path,) = pathlib.Path(str(FOLDER)).glob(f"{name.lower()}-*.th")
    file = torch.load(path, weights_only=True, map_location="cpu")
    variables = from_torch(file["state_dict"])
    model = getattr(resnet_jax, name)(10)

    @functools.partial(jax.jit, compiler_options=OPTIONS)
    def classify(image_BHWC):
        image_BHWC = normalize(image_BHWC, mean=MEAN, std=STD)
        return model.apply(variables, image_BHWC).argmax(axis=-1)

    (test,) = data.load_splits("cifar10", "test", data_dir=None, manual_dir=None)
    parts = np.split(test.image_BHWC, 20)
    predicted_M = np.concatenate([classify(part) for part in parts])
    assert (predicted_M != test.label_B).sum() == num_errors


def test_names_become_those_of_a_resnet():
    model = resnet_jax.ResNet18(10, width=8)
    image = jnp.ones((1, 8, 8, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    state = {
        "conv1.weight": np.zeros((8, 3, 3, 3)),
        "module.bn1.weight": np.zeros(8),
        "bn1.num_batches_tracked": np.zeros(()),
        "layer2.0.downsample.0.weight": np.zeros((16, 8, 1, 1)),
        "layer2.0.shortcut.1.running_var": np.zeros(16),
        "layer4.1.conv2.weight": np.zeros((64, 64, 3, 3)),
        "fc.weight": np.zeros((10, 64)),
        "linear.bias": np.zeros(10),
    }
    for collection, tree in from_torch(state).items():
        for path, array in jax.tree_util.tree_leaves_with_path(tree):
            place = variables[collection]
            for key in path:
                place = place[key.key]
            assert place.shape == array.shape


@pytest.mark.parametrize("name", ["attention.weight", "layer1.0.conv1.scale"])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match=f"'{name}' is no weight of a residual"):
        from_torch({name: np.zeros((2, 2))})
