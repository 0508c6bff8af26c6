"""Models of other libraries at full size, where the libraries are installed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import resnet_jax.weights
import vit_jax.weights
from tests.weights.test_parity import relative
from train_jax.data.resize import resize_image
from vit_jax.weights.authors import AUTHORS
from weight_files import Pretrained, open_source, to_theirs

pytestmark = [pytest.mark.slow, pytest.mark.parity]  # up to 86 million parameters


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def draw(module):
    """Give a module random values, as the golden files have them."""
    pytest.importorskip("timm")
    pytest.importorskip("transformers")
    from tests.make_golden_weights import draw

    return draw(module, seed=0)


def compare(module, loaded, *, seed=0):
    """Compare the logits for two random images; return PyTorch's."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(seed)
    image_BHWC = rng.normal(size=(2, *loaded.image_shape)).astype(np.float32)
    with torch.no_grad():
        logits = module(torch.as_tensor(image_BHWC.transpose(0, 3, 1, 2)))
    logits = getattr(logits, "logits", logits).numpy()
    ours = jax.jit(loaded.model.apply)(loaded.variables, image_BHWC)
    assert relative(np.asarray(ours), logits) < 1e-5
    return logits


@pytest.mark.parametrize("size", [224, 384])
@pytest.mark.parametrize("name", ["tiny", "small", "base"])
def test_vit_of_timm(name, size, torch, tmp_path):
    timm = pytest.importorskip("timm")
    module = draw(timm.create_model(f"vit_{name}_patch16_{size}"))
    loaded = vit_jax.weights.load(module.state_dict())
    assert loaded.image_shape == (size, size, 3)
    compare(module, loaded)
    (file,) = vit_jax.weights.save(tmp_path / "a.safetensors", loaded, format="timm")
    arguments = open_source(file).config["model_args"]
    arguments |= {"act_layer": torch.nn.GELU}
    again = timm.models.vision_transformer.VisionTransformer(**arguments).eval()
    again.load_state_dict(
        pytest.importorskip("safetensors.torch").load_file(file), strict=True
    )
    compare(again, loaded)


@pytest.mark.parametrize("is_big_vision", [False, True])
@pytest.mark.parametrize("pool", ["cls", "mean", "map"])
def test_npz_is_read_by_timm(pool, is_big_vision, torch, tmp_path):
    """timm reads the authors' files, and those of big_vision."""
    timm = pytest.importorskip("timm")
    pools = {"cls": "token", "mean": "avg", "map": "map"}
    fields = {"class_token": pool == "cls", "global_pool": pools[pool]}
    if pool == "mean":
        fields["fc_norm"] = False
    size = {"embed_dim": 192, "num_heads": 3, "depth": 2, "act_layer": "gelu_tanh"}
    make = timm.models.vision_transformer.VisionTransformer
    module = draw(make(**size, **fields))
    loaded = vit_jax.weights.load(
        module.state_dict(), activation="gelu_tanh", initialization="authors", pool=pool
    )
    file = tmp_path / "a.npz"
    if is_big_vision:
        write_big_vision(file, loaded)
        fields["no_embed_class"] = True
    elif pool != "cls":
        with pytest.raises(ValueError, match="has no ViT with pool"):
            vit_jax.weights.save(file, loaded, format="npz")
        return
    else:
        vit_jax.weights.save(file, loaded, format="npz")
    again = make(**size, **fields)
    again.load_pretrained(str(file))
    loaded = vit_jax.weights.load(file)
    assert loaded.mean == (0.5, 0.5, 0.5)
    compare(again.eval(), loaded)


def write_big_vision(file, loaded):
    """Write a ViT as big_vision names its parameters."""
    arrays = to_theirs(AUTHORS.table(loaded.model), loaded.variables)
    for old, new in (
        ("MultiHeadDotProductAttention_1", "MultiHeadDotProductAttention_0"),
        ("LayerNorm_2", "LayerNorm_1"),
        ("MlpBlock_3", "MlpBlock_0"),
        ("Transformer/posembed_input/pos_embedding", "pos_embedding"),
    ):
        arrays = {name.replace(old, new): x for name, x in arrays.items()}
    if loaded.model.pool == "cls":
        arrays["pos_embedding"] = arrays["pos_embedding"][:, 1:]
    np.savez(file, **{f"params/{name}": x for name, x in arrays.items()})


def test_vit_of_hugging_face(torch, tmp_path):
    transformers = pytest.importorskip("transformers")
    kind = transformers.ViTForImageClassification
    module = draw(kind(transformers.ViTConfig(num_hidden_layers=4)))
    module.save_pretrained(tmp_path / "theirs")
    loaded = vit_jax.weights.load(tmp_path / "theirs")
    compare(module, loaded)
    loaded = dataclasses.replace(loaded, mean=(0.5,) * 3, std=(0.5,) * 3)
    vit_jax.weights.save(tmp_path / "ours", loaded, format="hf")
    again, info = kind.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values())
    compare(again.eval(), loaded)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "ours")
    assert tuple(processor.image_mean) == (0.5,) * 3


@pytest.mark.parametrize("shape", [(300, 450), (450, 300), (224, 224)])
@pytest.mark.parametrize("fraction", [1.0, 0.9, 0.875])
@pytest.mark.parametrize("resize", ["crop", "stretch"])
def test_pictures_are_resized_as_by_hugging_face(shape, fraction, resize, tmp_path):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = vit_jax.ViT(
        2, patch_size=112, width=8, depth=1, num_heads=2, activation="gelu"
    )
    variables = jax.jit(model.init)(jax.random.key(0), jnp.ones((1, 224, 224, 3)))
    how = {"resize": resize, "crop_fraction": fraction}
    half = (0.5,) * 3
    pretrained = Pretrained(model, variables, (224, 224, 3), half, half, **how)
    vit_jax.weights.save(tmp_path, pretrained, format="hf")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    image_HWC = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    (pixels_CHW,) = processor(image_HWC, return_tensors="np")["pixel_values"]
    resized = resize_image(image_HWC, (224, 224), how=resize, crop_fraction=fraction)
    # Torch rounds otherwise than PIL. (An odd number of pixels that are cut off is
    # halved as by torchvision here, and rounded down there.)
    theirs_HWC = 127.5 + 127.5 * pixels_CHW.transpose(1, 2, 0)
    np.testing.assert_allclose(theirs_HWC, resized, atol=1.01)


@pytest.mark.parametrize("name", ["vit_b_16", "vit_b_32"])
def test_vit_of_torchvision(name, torch, tmp_path):
    models = pytest.importorskip("torchvision").models
    module = draw(getattr(models, name)())
    loaded = vit_jax.weights.load(module.state_dict())
    compare(module, loaded)
    (file,) = vit_jax.weights.save(
        tmp_path / "a.safetensors", loaded, format="torchvision"
    )
    again = getattr(models, name)()
    again.load_state_dict(pytest.importorskip("safetensors.torch").load_file(file))
    compare(again.eval(), loaded)


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_resnet_of_all_libraries(depth, torch, tmp_path):
    models = pytest.importorskip("torchvision").models
    timm = pytest.importorskip("timm")
    transformers = pytest.importorskip("transformers")
    load_file = pytest.importorskip("safetensors.torch").load_file
    module = draw(getattr(models, f"resnet{depth}")())
    loaded = resnet_jax.weights.load(module.state_dict())
    compare(module, loaded)
    path = tmp_path / "a.safetensors"
    (file,) = resnet_jax.weights.save(path, loaded, format="torchvision")
    for again in (
        getattr(models, f"resnet{depth}")(),
        timm.create_model(f"resnet{depth}"),
    ):
        again.load_state_dict(load_file(file))
        compare(again.eval(), loaded)
    resnet_jax.weights.save(tmp_path / "hf", loaded, format="hf")
    kind = transformers.ResNetForImageClassification
    again, info = kind.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(info.values())
    compare(again.eval(), loaded)
