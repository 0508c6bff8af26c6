"""Weights fitted to a model for other images or classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import resnet_jax.weights
import vit_jax.weights
from resnet_jax import ResNet
from tests import modules
from tests.modules import apply, normal
from vit_jax import ViT
from weight_files import Pretrained, adapt_channels

IMAGE_BHWC = normal(2, 8, 8, 3)


def pretrained(model):
    """A model with drawn variables, as `load` returns them."""
    variables = jax.device_get(modules.variables(model, *IMAGE_BHWC.shape))
    return Pretrained(model, variables, (8, 8, 3))


@pytest.fixture(scope="module")
def vit():
    return pretrained(ViT(3, patch_size=4, width=16, depth=2, num_heads=2))


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_a_convolutional_stem_is_fitted_to_other_channels(channels):
    model = ViT(3, patch_size=4, width=16, depth=1, num_heads=2, stem="conv")
    whole = pretrained(model)
    fitted = vit_jax.weights.fit(whole, model, (8, 8, channels))
    old = whole.variables["params"]["stem"]["conv_0"]["kernel"]
    kernel = fitted["params"]["stem"]["conv_0"]["kernel"]
    np.testing.assert_array_equal(kernel, adapt_channels(old, channels))
    image_BHWC = jnp.ones((1, 8, 8, channels))
    if channels < 5:  # a grey image's sum is that of its three equal channels
        expected = apply(model, whole.variables, jnp.ones((1, 8, 8, 3)))
        np.testing.assert_allclose(
            apply(model, fitted, image_BHWC), expected, rtol=1e-4, atol=1e-5
        )


@pytest.fixture(scope="module")
def resnet():
    return pretrained(ResNet(3, stage_sizes=(1, 1), width=4))


@pytest.mark.parametrize("package", [vit_jax, resnet_jax])
def test_features_before_the_head(package, vit, resnet):
    whole = vit if package is vit_jax else resnet
    backbone = whole.model.clone(num_classes=None)
    variables = package.weights.fit(whole, backbone, (8, 8, 3))
    features_BF = apply(backbone, variables, IMAGE_BHWC)
    head = whole.variables["params"]["head"]
    np.testing.assert_allclose(
        features_BF @ head["kernel"] + head["bias"][None],
        apply(whole.model, whole.variables, IMAGE_BHWC),
        atol=1e-5,
    )


@pytest.mark.parametrize("package", [vit_jax, resnet_jax])
def test_another_head_is_left_out_and_the_same_one_stays(package, vit, resnet):
    whole = vit if package is vit_jax else resnet
    for num_classes in (3, 5):
        model = whole.model.clone(num_classes=num_classes)
        fitted = package.weights.fit(whole, model, (8, 8, 3))
        assert ("head" in fitted["params"]) == (num_classes == 3)
    assert "head" in whole.variables["params"]  # which are left as they were


@pytest.mark.parametrize("package", [vit_jax, resnet_jax])
def test_a_grey_image_gives_what_the_same_in_colour_gave(package, vit, resnet):
    whole = vit if package is vit_jax else resnet
    grey_BHWC = IMAGE_BHWC[..., :1]
    fitted = package.weights.fit(whole, whole.model, (8, 8, 1))
    np.testing.assert_allclose(
        apply(whole.model, fitted, grey_BHWC),
        apply(whole.model, whole.variables, jnp.repeat(grey_BHWC, 3, axis=-1)),
        atol=1e-5,
    )


def test_scan_there_and_back(vit):
    scanned = vit.model.clone(scan=True)
    variables = vit_jax.weights.fit(vit, scanned, (8, 8, 3))
    np.testing.assert_allclose(
        apply(scanned, variables, IMAGE_BHWC),
        apply(vit.model, vit.variables, IMAGE_BHWC),
        atol=1e-5,
    )
    again = vit_jax.weights.fit(
        Pretrained(scanned, variables, (8, 8, 3)), vit.model, (8, 8, 3)
    )
    jax.tree.map(np.testing.assert_array_equal, again, vit.variables)


def test_a_larger_image_has_positions_in_between(vit):
    fitted = vit_jax.weights.fit(vit, vit.model, (16, 12, 3))
    expected = vit_jax.weights.resize_position_embedding(
        vit.variables["params"]["pos_embedding"], (2, 2), (4, 3)
    )
    np.testing.assert_array_equal(fitted["params"]["pos_embedding"], expected)
    logits_BY = jax.eval_shape(vit.model.apply, fitted, normal(1, 16, 12, 3))
    assert logits_BY.shape == (1, 3)


def test_a_patch_of_another_size_keeps_its_embedding(vit):
    """FlexiViT's definition: ⟨resized patch, resized kernel⟩ = ⟨patch, kernel⟩."""
    larger = vit.model.clone(patch_size=6)
    fitted = vit_jax.weights.fit(vit, larger, (12, 12, 3))
    patch_BPPC = normal(5, 4, 4, 3)
    resized_BPPC = jax.image.resize(patch_BPPC, (5, 6, 6, 3), "bicubic")
    old, new = (v["params"]["embedding"] for v in (vit.variables, fitted))
    np.testing.assert_allclose(
        resized_BPPC.reshape(5, -1) @ new["kernel"],
        patch_BPPC.reshape(5, -1) @ old["kernel"],
        atol=1e-4,
    )
    expected = vit.variables["params"]["pos_embedding"]  # two by two patches, as before
    np.testing.assert_array_equal(fitted["params"]["pos_embedding"], expected)
    logits_BY = jax.eval_shape(larger.apply, fitted, normal(1, 12, 12, 3))
    assert logits_BY.shape == (1, 3)


@pytest.mark.parametrize("sizes", [(4, 6), (6, 4), (16, 7)])
def test_a_patch_embedding_is_resized_as_in_timm(sizes):
    torch = pytest.importorskip("torch")
    old, new = sizes
    kernel_PPCD = np.asarray(normal(old, old, 3, 8))
    pixels = torch.eye(old * old).reshape(-1, 1, old, old)
    resized = torch.nn.functional.interpolate(
        pixels, (new, new), mode="bicubic", antialias=True
    )
    inverse = torch.linalg.pinv(resized.reshape(old * old, -1)).numpy()
    expected = inverse @ kernel_PPCD.reshape(old * old, -1)
    found = vit_jax.weights.resize_patch_embedding(kernel_PPCD.reshape(-1, 8), old, new)
    np.testing.assert_allclose(
        found.reshape(new * new, -1), expected, atol=1e-5 * np.abs(expected).max()
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_heads": 4}, "model.num_heads must be 2, as in the weights, got 4"),
        ({"position_embedding": "rope"}, "model.position_embedding must be 'learned'"),
        ({"stem": "conv"}, "model.stem must be 'patches', as in the weights"),
        ({"qkv_bias": False}, "model.qkv_bias must be True, as in the weights"),
        ({"width": 32}, "the weights have other shapes than the model"),
        (
            {"pool": "mean"},
            "parameters that the model does not have: 'params/cls'",
        ),
    ],
)
def test_a_model_of_another_meaning_is_refused(vit, fields, message):
    with pytest.raises(ValueError, match=message):
        vit_jax.weights.fit(vit, vit.model.clone(**fields), (8, 8, 3))
