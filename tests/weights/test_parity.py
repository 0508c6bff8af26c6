"""Models of other libraries: the same logits and gradients, and back again."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import resnet_jax.weights
import vit_jax.weights
from resnet_jax import ResNet
from resnet_jax.weights import huggingface
from tests.weights import cases
from vit_jax.weights import FORMATS
from weight_files import to_theirs

# Arrays that this project has in another form, as a class token that isn't classified
# is a register here, and registers have no places.
OTHERS = ("pos_embed", "reg_token", "cls_token")


def relative(actual, expected) -> float:
    """Compute the largest difference as a part of the largest value."""
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", cases.GOLDEN)
def test_logits_and_gradients_are_the_library_s(name):
    library, arguments, image_shape = cases.GOLDEN[name]
    record = cases.read_golden(name)
    loaded = cases.load(library, arguments, cases.below(record, "state"))
    assert loaded.image_shape[2] == image_shape[2]

    @jax.jit
    def compute(params, image_BHWC):
        def loss(params, image_BHWC):
            variables = {**loaded.variables, "params": params}
            logits_BY = loaded.model.apply(variables, image_BHWC)
            return jnp.sum(logits_BY * record["cotangent"]), logits_BY

        return jax.grad(loss, (0, 1), has_aux=True)(params, image_BHWC)

    with jax.default_matmul_precision("highest"):
        (params, image), logits = compute(
            loaded.variables["params"], record["image_BHWC"]
        )
    assert relative(logits, record["logits"]) < 1e-5
    assert relative(image, record["grad_image_BHWC"]) < 1e-5
    gradients = jax.device_get({**loaded.variables, "params": params})
    model = loaded.model
    if isinstance(model, ResNet):
        theirs = to_theirs(huggingface.table(model), gradients)
    else:
        format = {"huggingface_vit": "hf", "torchvision_vit": "torchvision"}
        layout = FORMATS[format.get(library, "timm")]
        theirs = layout.write_arrays(to_theirs(layout.table(model), gradients), model)
    expected = cases.below(record, "grad")
    largest = max(np.abs(array).max() for array in expected.values())
    compared = {
        name
        for name in expected
        if not (getattr(model, "num_registers", 0) and name in OTHERS)
    }
    assert len(compared) >= len(expected) - len(OTHERS)
    for array in compared:
        np.testing.assert_allclose(
            theirs[array], expected[array], atol=2e-5 * largest, err_msg=array
        )


@pytest.mark.parametrize("name", cases.GOLDEN)
def test_what_is_written_is_read_again(name, tmp_path):
    library, arguments, image_shape = cases.GOLDEN[name]
    record = cases.read_golden(name)
    loaded = cases.load(library, arguments, cases.below(record, "state"))
    loaded = dataclasses.replace(
        loaded,
        mean=(0.1,) * image_shape[2],
        std=(0.2,) * image_shape[2],
        class_names=("a", "b", "c", "d", "e"),
        resampling="bicubic",
    )
    package = resnet_jax if isinstance(loaded.model, ResNet) else vit_jax
    formats = ["timm", "torchvision", "hf"]
    if package is vit_jax:
        formats.append("npz")
    written = []
    for format in formats:
        path = tmp_path / (format if format == "hf" else f"{format}.safetensors")
        path = path.with_suffix(".npz") if format == "npz" else path
        try:
            package.weights.save(path, loaded, format=format)
        except ValueError as error:
            assert re.search("has no ViT with|torchvision's ViT takes", str(error))
            assert not path.exists()
            continue
        again = package.weights.load(path, image_size=loaded.image_shape[:2])
        jax.tree.map(np.testing.assert_array_equal, again.variables, loaded.variables)
        assert again.image_shape == loaded.image_shape
        written.append(format)
        if format in ("hf", "timm"):
            expected = dataclasses.replace(loaded, model=again.model, variables=None)
            assert dataclasses.replace(again, variables=None) == expected
        if format == "timm":
            assert again.model == loaded.model
    assert len(written) >= 1
