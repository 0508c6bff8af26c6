"""What files say beside the arrays, and what cannot be said in them."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import resnet_jax.weights
import vit_jax
from resnet_jax import ResNet
from tests import modules
from vit_jax import weights
from vit_jax.weights.format import Format
from vit_jax.weights.timm import TIMM
from weight_files import Pretrained, Source, open_source, to_theirs
from weight_files.preprocessing import preprocessing_of

HALF = (0.5, 0.5, 0.5)


def make_vit(image_shape=(8, 8, 3), **fields):
    fields = {"patch_size": 4, "width": 16, "depth": 2, "num_heads": 2, **fields}
    model = vit_jax.ViT(**{"num_classes": 3, **fields})
    variables = modules.variables(model, 1, *image_shape)
    mean = HALF[: image_shape[2]]
    return Pretrained(model, variables, image_shape, mean, mean, ("a", "b", "c"))


def state_of(pretrained: Pretrained, layout: Format = TIMM) -> dict[str, np.ndarray]:
    variables = jax.device_get(pretrained.variables)
    return to_theirs(layout.table(pretrained.model), variables)


def test_a_folder_with_a_file_says_what_the_file_says(tmp_path):
    vit = make_vit()  # its activation is not timm's default
    weights.save(tmp_path / "model.safetensors", vit, format="timm")
    loaded = weights.load(tmp_path)
    assert loaded.model.activation == vit.model.activation == "gelu_tanh"
    assert loaded.model.num_heads == 2
    assert (loaded.mean, loaded.class_names) == (HALF, ("a", "b", "c"))


def test_heads_are_not_guessed_where_timm_has_two_models_of_a_width():
    fields = {"width": 768, "depth": 12, "num_heads": 16, "mlp_ratio": 0.01}
    model = vit_jax.ViT(3, patch_size=4, pool="mean", activation="gelu", **fields)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 8, 8, 3)))
    variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    state = state_of(Pretrained(model, variables, (8, 8, 3), HALF, HALF))
    with pytest.raises(ValueError, match="num_heads must be given for a width of 768"):
        weights.load(state)
    assert weights.load(state, num_heads=16).model.num_heads == 16
    for name, num_heads in (
        ("vit_base_patch16_siglip_gap_224", 12),
        ("vit_base_patch16_gap_224", 16),
    ):
        source = Source("a", state, {"architecture": name})
        assert weights.load(source).model.num_heads == num_heads


@pytest.mark.parametrize(
    ("architecture", "activation"),
    [
        ("vit_base_patch16_siglip_256", "gelu"),
        ("vit_base_patch32_siglip_256", "gelu_tanh"),
        ("vit_base_patch32_siglip_gap_256", "gelu_tanh"),
        ("vit_large_patch16_siglip_384", "gelu"),
        ("vit_large_patch16_siglip_512", "gelu_tanh"),
        ("vit_so400m_patch16_siglip_gap_512", "gelu_tanh"),
        ("vit_giantopt_patch16_siglip_384", "gelu_tanh"),
    ],
)
def test_which_gelu_timm_s_siglip_has(architecture, activation):
    state, heads = state_of(make_vit()), {"num_heads": 2}
    config = {"architecture": architecture, "model_args": heads}
    assert weights.load(Source("a", state, config)).model.activation == activation
    given = config | {"model_args": heads | {"act_layer": "relu"}}
    assert weights.load(Source("a", state, given)).model.activation == "relu"


def test_a_pooling_that_takes_other_tokens_is_refused():
    config = {"model_args": {"num_heads": 2, "pool_include_prefix": True}}
    with pytest.raises(ValueError, match="pool_include_prefix is not supported"):
        weights.load(Source("a", state_of(make_vit()), config))


@pytest.mark.parametrize("package", [vit_jax, resnet_jax])
def test_features_are_loaded_without_the_head(package, tmp_path):
    whole = make_vit()
    if package is resnet_jax:
        model = ResNet(3, stage_sizes=(1, 1), width=4)
        variables = modules.variables(model, 1, 8, 8, 3)
        whole = dataclasses.replace(whole, model=model, variables=variables)
    (path,) = package.weights.save(tmp_path / "a.safetensors", whole, format="timm")
    loaded = package.weights.load(path, num_classes=None, image_size=(8, 8))
    assert (loaded.model.num_classes, loaded.class_names) == (None, None)
    image_BHWC = jnp.ones((1, 8, 8, 3))
    features_BF = modules.apply(loaded.model, loaded.variables, image_BHWC)
    head = whole.variables["params"]["head"]
    np.testing.assert_allclose(
        features_BF @ head["kernel"] + head["bias"][None],
        modules.apply(whole.model, whole.variables, image_BHWC),
        atol=1e-5,
    )


def test_an_npz_file_may_hold_bfloat16(tmp_path):
    vit = make_vit(activation="gelu_tanh")
    (path,) = weights.save(tmp_path / "a.npz", vit, format="npz")
    with np.load(path) as file:
        arrays = {name: file[name].astype(jnp.bfloat16) for name in file.files}
    np.savez(path, **arrays)
    loaded = weights.load(path, num_heads=2, image_size=(8, 8))
    jax.tree.map(
        lambda x, y: np.testing.assert_array_equal(x, y.astype(jnp.bfloat16)),
        jax.device_get(loaded.variables),
        jax.device_get(vit.variables),
    )


@pytest.mark.parametrize(
    "config",
    [
        {"global_pool": "max"},
        {"architecture": "resnet18", "model_args": {"global_pool": "max"}},
    ],
)
def test_another_pooling_of_a_resnet_is_refused(config, tmp_path):
    model = ResNet(3, stage_sizes=(1,), width=4)
    variables = modules.variables(model, 1, 8, 8, 3)
    small = Pretrained(model, variables, (8, 8, 3), HALF, HALF)
    (file,) = resnet_jax.weights.save(tmp_path / "a.safetensors", small, format="timm")
    arrays = open_source(file).arrays
    resnet_jax.weights.load(Source("a", arrays, {"global_pool": "avg"}))
    with pytest.raises(ValueError, match="global_pool 'max' is not supported"):
        resnet_jax.weights.load(Source("a", arrays, config))


@pytest.mark.parametrize("image_shape", [(16, 8, 3), (8, 16, 3)])
@pytest.mark.parametrize("fraction", [1.0, 0.5])
@pytest.mark.parametrize("resize", ["crop", "stretch"])
@pytest.mark.parametrize("format", ["hf", "timm"])
def test_how_images_are_resized_is_read_as_written(
    tmp_path, image_shape, fraction, resize, format
):
    vit = make_vit(image_shape, activation="gelu")
    vit = dataclasses.replace(vit, crop_fraction=fraction, resize=resize)
    weights.save(tmp_path / "a.safetensors", vit, format=format)
    loaded = weights.load(tmp_path / "a.safetensors")
    assert (loaded.crop_fraction, loaded.resize) == (fraction, resize)
    assert loaded.image_shape == image_shape


def test_pixels_that_fill_no_patch_are_cut_off():
    """As of timm's vit_so400m_patch14_siglip_384, which sees 378 of 384 pixels."""
    state = state_of(make_vit(activation="gelu"))
    source = Source("a", state, {"pretrained_cfg": {"input_size": [3, 11, 11]}})
    assert weights.load(source, num_heads=2).image_shape == (8, 8, 3)


def test_averaged_weights_of_torchvision():
    state = state_of(make_vit(activation="gelu"))
    averaged = {f"module.{name}": array + 1 for name, array in state.items()}
    averaged["n_averaged"] = np.array(5)
    loaded = weights.load({"model": state, "model_ema": averaged}, num_heads=2)
    kernel = state["head.bias"] + 1
    np.testing.assert_array_equal(loaded.variables["params"]["head"]["bias"], kernel)


def test_weights_for_a_model_that_scans_its_blocks():
    vit = make_vit(activation="gelu")
    image_BHWC = modules.normal(2, 8, 8, 3)
    loaded = weights.load(state_of(vit), num_heads=2, scan=True)
    assert loaded.model.scan
    np.testing.assert_allclose(
        modules.apply(loaded.model, loaded.variables, image_BHWC),
        modules.apply(vit.model, vit.variables, image_BHWC),
        atol=1e-5,
    )


@pytest.mark.parametrize("fields", [{"scan": True}, {"norm": None}])
def test_fields_that_torch_does_not_have_are_refused_in_reading(fields):
    encoder = vit_jax.Encoder(
        depth=1, num_heads=2, mlp_dim=8, norm="post", final_norm=True
    )
    variables = modules.variables(encoder, 1, 3, 4)
    state = weights.transformer_state(encoder, variables)
    weights.load_encoder(state, num_heads=2)
    with pytest.raises(ValueError, match=r"torch.nn has no Transformer with"):
        weights.load_encoder(state, num_heads=2, **fields)


def test_a_transformer_of_torch_has_final_norms():
    model = vit_jax.Transformer(
        num_heads=2, mlp_dim=8, encoder_depth=1, decoder_depth=1
    )
    x_BTD = jnp.ones((1, 3, 4))
    variables = modules.variables(model, x_BTD, x_BTD)
    with pytest.raises(ValueError, match="has final norms, use final_norm=True"):
        weights.transformer_state(model, variables)


@pytest.mark.parametrize(
    ("image_shape", "fields"),
    [((8, 12, 3), {}), ((8, 8, 1), {}), ((8, 8, 3), {"num_classes": None})],
)
def test_what_torchvision_cannot_build_is_not_written(tmp_path, image_shape, fields):
    vit = make_vit(image_shape, activation="gelu", **fields)
    with pytest.raises(ValueError, match="square images of 3 channels and has a head"):
        weights.save(tmp_path / "a.safetensors", vit, format="torchvision")


def test_layer_scales_of_0_exist_for_timm(tmp_path):
    vit = make_vit(layer_scale=0.0)
    (file,) = weights.save(tmp_path / "a.safetensors", vit, format="timm")
    config = weights.load(file).model
    assert config.layer_scale == 1.0
    assert open_source(file).config["model_args"]["init_values"] == 1


def test_names_of_classes_belong_to_a_head(tmp_path):
    bare = make_vit(num_classes=None, activation="gelu")  # with three names
    weights.save(tmp_path / "hf", bare, format="hf")
    assert json.loads((tmp_path / "hf/config.json").read_text())["id2label"] == {}
    (file,) = weights.save(tmp_path / "a.safetensors", bare, format="timm")
    assert "class_names" not in preprocessing_of(open_source(file))
    wrong = dataclasses.replace(make_vit(activation="gelu"), class_names=("a", "b"))
    for name, layout in (("hf", "hf"), ("a.safetensors", "timm")):
        with pytest.raises(ValueError, match="as many as num_classes, 3, got 2"):
            weights.save(tmp_path / name, wrong, format=layout)
