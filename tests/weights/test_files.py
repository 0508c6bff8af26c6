"""Files, folders and the hub: what is read, and what is refused in one line."""

import argparse
import functools
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import resnet_jax.weights
import vit_jax
import weight_files
from resnet_jax.weights import torch as torch_layout
from tests import modules, parity
from tests.weights import cases
from vit_jax import weights
from vit_jax.weights.load import FORMATS
from vit_jax.weights.timm import timm_config
from weight_files import Pretrained, open_source
from weight_files.preprocessing import preprocessing_of


@pytest.fixture(scope="module")
def vit():
    model = vit_jax.ViT(
        3, patch_size=4, width=16, depth=2, num_heads=2, activation="gelu"
    )
    variables = modules.variables(model, 1, 8, 8, 3)
    half = (0.5, 0.5, 0.5)
    return Pretrained(model, variables, (8, 8, 3), half, half, ("a", "b", "c"))


def refusal(source) -> str:
    with pytest.raises(ValueError) as error:
        weights.load(source)
    message = str(error.value)
    assert "\n" not in message
    assert str(source) in message
    return message


def test_missing_and_unknown_files(tmp_path):
    assert "do not exist" in refusal(tmp_path / "no.npz")
    (tmp_path / "a.txt").write_text("")
    assert "must be a file of: .npz, .safetensors, .pth" in refusal(tmp_path / "a.txt")
    assert "must be a folder with one of model.safetensors" in refusal(tmp_path)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth", ".th", ".bin"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no zip", b"\x80\x02 no pickle"])
def test_damaged_files(suffix, content, tmp_path):
    if suffix not in (".npz", ".safetensors"):
        pytest.importorskip("torch")
    file = tmp_path / f"a{suffix}"
    file.write_bytes(content)
    assert "are damaged" in refusal(file)


def test_truncated_file(vit, tmp_path):
    (file,) = weights.save(tmp_path / "a.safetensors", vit, format="timm")
    file.write_bytes(file.read_bytes()[:-100])
    assert "are damaged" in refusal(file)


def test_no_code_in_a_pickle_is_run(tmp_path):
    torch = pytest.importorskip("torch")

    class Evil:
        def __reduce__(self):
            return (pathlib.Path.touch, (tmp_path / "was_run",))

    torch.save({"state_dict": {"a": Evil()}}, tmp_path / "evil.pth")
    assert "with other objects than tensors" in refusal(tmp_path / "evil.pth")
    np.savez(tmp_path / "evil.npz", a=np.array([Evil()], dtype=object))
    assert "are damaged" in refusal(tmp_path / "evil.npz")
    assert not (tmp_path / "was_run").exists()


def test_names_that_belong_to_no_vit(tmp_path):
    np.savez(tmp_path / "a.npz", b=np.ones(3), c=np.ones(3))
    assert "their first names are 'b', 'c'" in refusal(tmp_path / "a.npz")


def test_missing_and_left_over_arrays(vit):
    state = dict(_state(vit))
    for name in (
        "blocks.0.norm1.bias",
        "blocks.1.norm1.bias",
        "norm.bias",
        "pos_embed",
    ):
        removed = {k: v for k, v in state.items() if k != name}
        with pytest.raises(ValueError, match=f"lack '{name}'"):
            weights.load(removed, num_heads=2)
    extra = {f"extra.{i}": np.ones(1) for i in range(5)}
    with pytest.raises(ValueError, match=r"'extra.0', 'extra.1', 'extra.2' and 2 more"):
        weights.load(state | extra, num_heads=2)
    wrong = state | {"norm.bias": np.ones(7)}
    with pytest.raises(ValueError, match=r"norm/bias \(7,\) instead of \(16,\)"):
        weights.load(wrong, num_heads=2)


def _state(vit):
    from vit_jax.weights.timm import TIMM
    from weight_files import to_theirs

    return to_theirs(TIMM.table(vit.model), jax.device_get(vit.variables))


def test_num_heads_must_be_given_where_nothing_tells_it(vit):
    with pytest.raises(ValueError, match="num_heads must be given for a width of 16"):
        weights.load(_state(vit))


@pytest.mark.parametrize("layout", ["timm", "hf", "torchvision"])
def test_a_known_width_alone_does_not_tell_the_heads(layout):
    """A ViT as wide as Ti/16, but not as deep, has any number of heads."""
    model = vit_jax.ViT(
        3, patch_size=4, width=192, depth=1, num_heads=6, activation="gelu"
    )
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 8, 8, 3)))
    variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), variables)
    state = weight_files.to_theirs(FORMATS[layout].table(model), variables)
    with pytest.raises(ValueError, match="num_heads must be given for a width of 192"):
        weights.load(state)
    assert weights.load(state, num_heads=6).model.num_heads == 6


@pytest.mark.parametrize("layout", ["timm", "hf", "torchvision"])
def test_width_and_depth_of_a_known_model_tell_the_heads(layout):
    model = vit_jax.ViT(
        3, patch_size=4, width=192, depth=12, num_heads=3, activation="gelu"
    )
    variables = modules.shapes(model, 1, 8, 8, 3)
    variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), variables)
    state = weight_files.to_theirs(FORMATS[layout].table(model), variables)
    assert weights.load(state).model.num_heads == 3


def test_a_token_for_masked_training_alone_is_left_out(vit):
    """DINOv2's own files have one; a model whose images are whole never uses it."""
    state = _state(vit)
    masked = state | {"mask_token": np.zeros((1, 16), np.float32)}
    loaded = weights.load(masked, num_heads=2)
    jax.tree.map(
        np.testing.assert_array_equal,
        loaded.variables,
        weights.load(state, num_heads=2).variables,
    )


def test_image_size_must_be_given_where_the_patches_form_no_square():
    state = cases.below(cases.read_golden("timm_oblong"), "state")
    with pytest.raises(ValueError, match="image_size must be given"):
        weights.load(state, num_heads=4)
    assert weights.load(state, num_heads=4, image_size=(8, 12)).image_shape[1] == 12


@pytest.mark.parametrize("format", ["timm", "hf"])
def test_an_oblong_image_with_a_square_number_of_patches(vit, tmp_path, format):
    """2×8 patches are as many as 4×4: what the file says of its size counts."""
    model = vit.model
    variables = modules.variables(model, 1, 8, 32, 3)
    path = tmp_path / ("folder" if format == "hf" else "a.safetensors")
    oblong = Pretrained(model, variables, (8, 32, 3), vit.mean, vit.std)
    weights.save(path, oblong, format=format)
    assert weights.load(path).image_shape == (8, 32, 3)


def test_another_pool_than_the_file_s_keeps_all_tokens(vit):
    state = _state(vit)
    with pytest.raises(ValueError, match="num_registers must be 1 with pool 'mean'"):
        weights.load(state, num_heads=2, pool="mean")
    loaded = weights.load(state, num_heads=2, pool="mean", num_registers=1)
    image_BHWC = jnp.ones((1, 8, 8, 3))
    features = modules.apply(loaded.model, loaded.variables, image_BHWC)
    assert features.shape == (1, 3)


def test_a_pooling_that_there_is_not_is_refused(vit):
    source = weight_files.Source("a.bin", _state(vit), {"global_pool": "max"})
    with pytest.raises(ValueError, match="global_pool must be 'token', 'avg' or 'map'"):
        weights.load(source)


@pytest.mark.parametrize(
    ("format", "field", "value"),
    [
        ("hf", "num_registers", 1),
        ("hf", "pool", "mean"),
        ("hf", "layer_scale", 0.1),
        ("hf", "representation_size", 8),
        ("hf", "norm", "post"),
        ("hf", "residual", False),
        ("npz", "activation", "gelu"),
        ("torchvision", "norm_epsilon", 1e-12),
        ("timm", "position_embedding", "rope"),
        ("timm", "stem", "conv"),
        ("timm", "pool", "sequence"),
        ("timm", "representation_size", 8),
        ("timm", "mlp_ratio", None),
    ],
)
def test_what_a_library_cannot_express_is_refused(vit, format, field, value, tmp_path):
    import dataclasses

    model = vit.model.clone(**{field: value})
    if field not in ("stem", "mlp_ratio"):
        variables = modules.variables(model, 1, 8, 8, 3)
    else:
        variables = vit.variables
    changed = dataclasses.replace(vit, model=model, variables=variables)
    with pytest.raises(ValueError, match=rf"has no ViT with {field} {value!r}"):
        weights.save(tmp_path / "file", changed, format=format)
    assert not list(tmp_path.iterdir())


def test_other_formats_and_models_are_refused(vit, tmp_path):
    with pytest.raises(ValueError, match="format must be one of timm, hf"):
        weights.save(tmp_path / "a", vit, format="gguf")


def test_blocks_under_scan_are_written_as_others(vit, tmp_path):
    import dataclasses

    params = weights.stack_blocks(vit.variables["params"])
    scanned = dataclasses.replace(
        vit, model=vit.model.clone(scan=True), variables={"params": params}
    )
    (a,) = weights.save(tmp_path / "a.safetensors", vit, format="timm")
    (b,) = weights.save(tmp_path / "b.safetensors", scanned, format="timm")
    a, b = (open_source(file).arrays for file in (a, b))
    assert a.keys() == b.keys()
    jax.tree.map(np.testing.assert_array_equal, a, b)
    image = jnp.ones((1, 8, 8, 3))
    np.testing.assert_allclose(
        modules.apply(scanned.model, scanned.variables, image),
        modules.apply(vit.model, vit.variables, image),
        atol=1e-5,
    )


@pytest.mark.parametrize("position_embedding", ["sincos2d", None])
def test_a_fixed_position_embedding_is_written_as_a_learned_one(
    position_embedding, vit, tmp_path
):
    import dataclasses

    model = vit.model.clone(position_embedding=position_embedding)
    image = modules.normal(2, 8, 8, 3)
    variables = modules.variables(model, image)
    fixed = dataclasses.replace(vit, model=model, variables=variables)
    (file,) = weights.save(tmp_path / "a.safetensors", fixed, format="timm")
    loaded = weights.load(file)
    assert loaded.model.position_embedding == "learned"
    np.testing.assert_allclose(
        modules.apply(loaded.model, loaded.variables, image),
        modules.apply(model, variables, image),
        atol=1e-5,
    )


def test_blocks_that_big_vision_scanned_are_read():
    from vit_jax.weights.authors import AUTHORS

    model = vit_jax.ViT(3, patch_size=4, width=16, depth=2, num_heads=2, pool="mean")
    variables = modules.variables(model, 1, 8, 8, 3)
    arrays = weight_files.to_theirs(AUTHORS.table(model), variables)
    scanned = {}
    for name, array in arrays.items():
        name = name.replace("Attention_1", "Attention_0").replace(
            "MlpBlock_3", "MlpBlock_0"
        )
        name = name.replace("LayerNorm_2", "LayerNorm_1").replace("posembed_input/", "")
        if "encoderblock_" in name:
            block = int(name.split("encoderblock_")[1][0])
            place = name.replace(f"encoderblock_{block}", "encoderblock")
            scanned.setdefault(f"params/{place}", {})[block] = array
        else:
            place = name.replace("Transformer/pos_embedding", "pos_embedding")
            scanned[f"params/{place}"] = array
    state = {
        name: np.stack([x[0], x[1]]) if isinstance(x, dict) else x
        for name, x in scanned.items()
    }
    loaded = weights.load(state)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, variables)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_transformer_of_pytorch(norm):
    record = parity.read("golden", f"transformer_{norm}_unmasked")
    state = parity.part(record, "state")
    # PyTorch's defaults, or those of a ViT.
    fields = {"activation": jax.nn.relu}
    if norm == "pre":
        fields = {"activation": jax.nn.gelu, "norm": "pre", "norm_epsilon": 1e-6}
    model, variables = weights.load_transformer(state, num_heads=2, **fields)
    tokens = (record["input/source"], record["input/target"])
    out = modules.apply(model, variables, *tokens)
    np.testing.assert_allclose(out, record["output/out"], atol=1e-5)
    written = weights.transformer_state(model, variables)
    assert written.keys() == state.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(written[name], array)
    part = {
        name.removeprefix("encoder."): array
        for name, array in state.items()
        if name.startswith("encoder.")
    }
    encoder, encoder_variables = weights.load_encoder(part, num_heads=2, **fields)
    encode = functools.partial(model.apply, method=lambda it, x: it.encoder(x))
    expected = jax.jit(encode)(variables, tokens[0])
    out = modules.apply(encoder, encoder_variables, tokens[0])
    np.testing.assert_allclose(out, expected, atol=1e-6)
    assert weights.transformer_state(encoder, encoder_variables).keys() == part.keys()
    with pytest.raises(ValueError, match=r"are no torch\.nn\.TransformerEncoder: they"):
        weights.load_encoder(state, num_heads=2)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("norm", None),
        ("mlp_dim", None),
        ("residual", False),
        ("layer_scale", 0.1),
        ("scan", True),
    ],
)
def test_pytorch_s_modules_cannot_express_everything(field, value):
    fields = {"num_heads": 2, "mlp_dim": 8, "depth": 1, field: value}
    model = vit_jax.Encoder(**fields)
    variables = modules.variables(model, 1, 3, 4)
    with pytest.raises(ValueError, match=rf"no Transformer with {field} {value!r}"):
        weights.transformer_state(model, variables)


@pytest.mark.parametrize("norm", [{"final_norm": True}, {"norm": "pre"}])
def test_a_decoder_alone_has_mlps(norm):
    model = vit_jax.Transformer(
        num_heads=2, mlp_dim=8, encoder_depth=0, decoder_depth=1, **norm
    )
    tokens = jnp.ones((1, 3, 4))
    variables = modules.variables(model, tokens, tokens)
    state = weights.transformer_state(model, variables)
    fields = {k: v for k, v in norm.items() if k == "norm"}
    loaded, again = weights.load_transformer(state, num_heads=2, **fields)
    assert loaded.mlp_dim == 8
    jax.tree.map(np.testing.assert_array_equal, again, variables)


_CONVNEXT = {"image_processor_type": "ConvNextImageProcessor"}


@pytest.mark.parametrize(
    ("preprocessing", "model_type", "expected"),
    [
        ({"size": 224}, None, (224, 1.0, "stretch")),
        ({"size": 224}, "vit", (224, 1.0, "stretch")),
        ({"size": 224}, "resnet", (224, 0.875, "crop")),
        ({"size": [224, 224]}, "resnet", (224, 0.875, "crop")),
        ({"size": {"shortest_edge": 224}}, "vit", (224, 1.0, "crop")),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.9}, None, (224, 0.9, "crop")),
        (
            {"size": {"height": 256, "width": 256}, "crop_size": 224}
            | {"do_center_crop": True},
            "deit",
            (224, 0.875, "stretch"),
        ),
        (
            {"size": [256], "crop_size": 224, "do_center_crop": False},
            None,
            (256, 1.0, "stretch"),
        ),
        (
            {"size": 224, "feature_extractor_type": "CLIPFeatureExtractor"},
            "vit",
            (224, 1.0, "crop"),
        ),
        ({"size": 224} | _CONVNEXT, "vit", (224, 0.875, "crop")),
        ({"size": 224, "crop_pct": 0.95} | _CONVNEXT, "vit", (224, 0.95, "crop")),
        ({"size": 384, "crop_pct": 0.875} | _CONVNEXT, "vit", (384, 1.0, "stretch")),
    ],
)
def test_resizing_in_preprocessor_config(preprocessing, model_type, expected):
    config = {} if model_type is None else {"model_type": model_type}
    found = preprocessing_of(weight_files.Source("a", {}, config, preprocessing))
    size, fraction, resize = expected
    assert found["image_size"] == (size, size)
    assert (found["crop_fraction"], found["resize"]) == (fraction, resize)


@pytest.mark.parametrize("resize", ["crop", "stretch"])
def test_resizing_in_timm_s_config(resize):
    mode = {"crop": "center", "stretch": "squash"}[resize]
    timm = {"input_size": [3, 32, 48], "crop_pct": 0.9, "crop_mode": mode}
    found = preprocessing_of(weight_files.Source("a", {}, {"pretrained_cfg": timm}))
    assert found == {"image_size": (32, 48), "crop_fraction": 0.9, "resize": resize}


@pytest.mark.parametrize(
    ("side", "patch_size", "width", "expected"),
    [
        (224, 112, 8, (0.875, "bilinear")),
        (224, 16, 1024, (224 / 242, "bilinear")),  # of vit_l_16
        (384, 192, 8, (1.0, "bicubic")),
    ],
)
def test_images_for_torchvision_s_vits_are_cropped(side, patch_size, width, expected):
    model = vit_jax.ViT(
        2,
        patch_size=patch_size,
        width=width,
        depth=1,
        num_heads=2,
        mlp_ratio=8 / width,
        activation="gelu",
    )
    variables = modules.variables(model, 1, side, side, 3)
    table = FORMATS["torchvision"].table(model)
    state = weight_files.to_theirs(table, jax.device_get(variables))
    loaded = weights.load(state, num_heads=2)
    assert loaded.image_shape == (side, side, 3)
    assert (loaded.crop_fraction, loaded.resampling) == expected


@pytest.mark.parametrize(("stem", "fraction"), [("imagenet", 0.875), ("small", 1.0)])
def test_images_for_torchvision_s_resnets_are_cropped(stem, fraction):
    model = resnet_jax.ResNet(2, (1,), stem=stem, width=8)
    variables = modules.variables(model, 1, 32, 32, 3)
    state = weight_files.to_theirs(torch_layout.table(model), jax.device_get(variables))
    assert resnet_jax.weights.load(state).crop_fraction == fraction
    assert resnet_jax.weights.load(state, image_size=64).image_shape == (64, 64, 3)


def test_a_field_that_there_is_not_is_the_caller_s_mistake(vit):
    with pytest.raises(ValueError, match=r"^n_heads is no field of ViT; it has"):
        weights.load(_state(vit), n_heads=2)


def test_config_json_that_does_not_fit(vit, tmp_path):
    weights.save(tmp_path, vit, format="hf")
    text = (tmp_path / "config.json").read_text()
    for old, new, message in (
        ('"gelu"', '"silu"', "has the hidden_act 'silu'"),
        ('"num_attention_heads"', '"other"', "num_heads must be given"),
        ("{", "[", "are damaged"),
    ):
        (tmp_path / "config.json").write_text(text.replace(old, new, 1))
        assert message in refusal(tmp_path)


def test_files_in_half_precision_become_float32(vit, tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    state = {k: torch.tensor(v).bfloat16() for k, v in _state(vit).items()}
    save_file(state, tmp_path / "a.safetensors")
    torch.save({"model": state, "epoch": 3}, tmp_path / "a.pth")
    for name in ("a.safetensors", "a.pth"):
        loaded = weights.load(tmp_path / name, num_heads=2)
        dtypes = {leaf.dtype for leaf in jax.tree.leaves(loaded.variables)}
        assert dtypes == {np.dtype("float32")}
        np.testing.assert_array_equal(
            loaded.variables["params"]["head"]["kernel"],
            state["head.weight"].float().numpy().T,
        )


def test_a_folder_with_several_files(vit, tmp_path):
    from safetensors.numpy import load_file, save_file

    weights.save(tmp_path, vit, format="hf")
    whole = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = sorted(whole)
    weight_map = {}
    for part in range(2):
        file = f"model-0000{part + 1}-of-00002.safetensors"
        save_file({name: whole[name] for name in names[part::2]}, tmp_path / file)
        weight_map |= dict.fromkeys(names[part::2], file)
    index = {"weight_map": weight_map}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    loaded = weights.load(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, vit.variables)
    assert loaded.class_names == ("a", "b", "c")


# The hub's library reads its variables when it is imported.
HUB = """
import sys
from vit_jax import weights
for source in sys.argv[1:]:
    try:
        loaded = weights.load(source)
        print(loaded.image_shape, loaded.class_names)
    except ValueError as error:
        print("refused:", error)
"""

# Source → how the line begins that it gives, if "main" and "v1" lie in the cache.
HUB_LINES = {
    "hf://owner/name": "(8, 8, 3) ('a', 'b', 'c')",
    "hf://owner/name@v1": "(8, 8, 3) ('a', 'b', 'c')",
    "hf://owner/name@v2": "refused: weights 'hf://owner/name@v2' can't be fetched",
    "hf://owner/other": "refused: weights 'hf://owner/other' can't be fetched",
    "hf://owner": "refused: weights must be hf://owner/name or",
}


@pytest.mark.parametrize(
    "variables",
    [
        {"HF_HUB_OFFLINE": "1"},
        # Nobody listens there; no proxy is to be asked.
        {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
        | {"NO_PROXY": "*", "no_proxy": "*"},
    ],
    ids=["offline", "no connection"],
)
def test_hub_offline_with_a_filled_cache(variables, vit, tmp_path):
    repository = tmp_path / "models--owner--name"
    commit = "0123456789" * 4
    (repository / "snapshots").mkdir(parents=True)
    weights.save(repository / "snapshots" / commit, vit, format="hf")
    (repository / "refs").mkdir()
    for reference in ("main", "v1"):
        (repository / "refs" / reference).write_text(commit)
    # With telemetry it would ask for one more page.
    environment = {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_DISABLE_TELEMETRY": "1"}
    run = subprocess.run(
        [sys.executable, "-c", HUB, *HUB_LINES],
        env=os.environ | environment | variables,
        capture_output=True,
        text=True,
    )
    lines = run.stdout.splitlines()
    assert len(lines) == len(HUB_LINES), run.stdout + run.stderr
    for line, expected in zip(lines, HUB_LINES.values(), strict=True):
        assert line.startswith(expected), run.stderr


def test_source_may_be_opened_before(vit, tmp_path):
    (file,) = weights.save(tmp_path / "a.safetensors", vit, format="timm")
    source = open_source(file)
    assert open_source(source) is source
    loaded = weights.load(source)
    assert loaded.model == vit.model.clone(position_std=0.02)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_channels_are_adapted_as_by_timm(channels):
    """The values are those of timm 1.0.31's adapt_input_conv, repeated here."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(2, 2, 3, 4)).astype(np.float32)
    adapted = weight_files.adapt_channels(kernel, channels)
    if channels == 1:
        expected = kernel.sum(axis=2, keepdims=True)
    else:
        cycle = [i % 3 for i in range(channels)]
        expected = kernel[:, :, cycle] * np.float32(3 / channels)
        expected = kernel if channels == 3 else expected
    np.testing.assert_allclose(adapted, expected, rtol=1e-6)


def test_one_side_is_enough_of_a_square_image(vit):
    loaded = weights.load(_state(vit), num_heads=2, image_size=8)
    assert loaded.image_shape == (8, 8, 3)


def test_a_smaller_image_size_is_refused(vit):
    with pytest.raises(
        ValueError, match="image_size gives 1 patches, which do not fit the 5 "
    ):
        weights.load(_state(vit), num_heads=2, image_size=(4, 4))


def test_what_timm_has_beyond_us_is_named(vit):
    state = _state(vit)
    with pytest.raises(ValueError, match="a distilled DeiT"):
        weights.load(state | {"dist_token": np.ones((1, 1, 16))}, num_heads=2)
    gated = {"blocks.0.mlp.fc2.weight": np.ones((16, 32), np.float32)}
    with pytest.raises(ValueError, match=r"gated MLPs \(SwiGLU\)"):
        weights.load(state | gated, num_heads=2)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architecture": "resnetaa50"}, "'resnetaa50', whose strides are blurred"),
        ({"model_args": {"aa_layer": "blurpool"}}, "with aa_layer 'blurpool' is not"),
    ],
)
def test_resnets_that_timm_computes_otherwise_are_refused(config, message):
    model = resnet_jax.ResNet(2, (1,), width=8)
    variables = modules.variables(model, 1, 32, 32, 3)
    state = weight_files.to_theirs(torch_layout.table(model), variables)
    source = weight_files.Source("a", state, config)
    with pytest.raises(ValueError, match=message):
        resnet_jax.weights.load(source)


def test_a_model_with_parameters_of_its_own_is_not_saved_without_them(tmp_path):
    model = resnet_jax.ResNet(2, (1,), width=8)
    variables = modules.variables(model, 1, 32, 32, 3)
    more = variables["params"] | {"gate": {"kernel": jnp.ones((2, 2))}}
    pretrained = Pretrained(model, {**variables, "params": more}, (32, 32, 3))
    with pytest.raises(ValueError, match="the format has no place for 'params/gate/k"):
        resnet_jax.weights.save(tmp_path / "a.safetensors", pretrained, format="timm")


def test_weights_within_a_checkpoint_are_found(vit):
    expected = weights.load(_state(vit), num_heads=2)
    averaged = {f"module.{name}": x for name, x in _state(vit).items()}
    other = {name: x * 0 for name, x in _state(vit).items()}
    checkpoint = {"state_dict": other, "state_dict_ema": averaged, "epoch": 3}
    compiled = {f"_orig_mod.module.{name}": x for name, x in _state(vit).items()}
    for content in (checkpoint, compiled):
        loaded = weights.load(content, num_heads=2)
        jax.tree.map(
            np.testing.assert_array_equal, loaded.variables, expected.variables
        )
    with pytest.raises(ValueError, match="must be a state dict of tensors only; 'epo"):
        weights.load({"epoch": 3}, num_heads=2)


def test_objects_beside_the_tensors_are_named(tmp_path):
    pytorch = pytest.importorskip("torch")
    content = {"state_dict": {}, "args": argparse.Namespace(lr=1)}
    pytorch.save(content, tmp_path / "a.pth")
    assert "pickled with other objects than tensors" in refusal(tmp_path / "a.pth")


@pytest.mark.parametrize(("hidden", "width"), [(240, 176), (240, 208), (64, 16)])
def test_the_hidden_width_survives_timm_s_rounding(vit, hidden, width):
    model = vit.model.clone(width=width, mlp_ratio=hidden / width)
    config = timm_config(model, (8, 8, 3))
    assert int(width * config["mlp_ratio"]) == hidden


@pytest.mark.parametrize(
    ("preprocessing", "message"),
    [
        (
            {"size": {"longest_edge": 512}},
            "must be a height and a width, or a shortest",
        ),
        (
            {"size": 256, "do_center_crop": True, "crop_size": 384},
            r"crop_size must be a part of their size, got \(384, 384\) of \(256, 256",
        ),
        (
            {"size": 256, "do_center_crop": True}
            | {"crop_size": {"height": 224, "width": 192}},
            r"crop_size must be a part of their size, got \(224, 192\) of \(256, 256",
        ),
        (
            {"size": {"shortest_edge": 224}, "crop_pct": 1.1},
            r"their crop_pct must be in \(0, 1\], got 1\.1",
        ),
    ],
)
def test_sizes_that_cannot_be_read(preprocessing, message):
    with pytest.raises(ValueError, match=message):
        preprocessing_of(weight_files.Source("a", {}, {}, preprocessing))


def test_a_frame_of_timm_is_refused():
    config = {"pretrained_cfg": {"crop_mode": "border"}}
    with pytest.raises(ValueError, match="crop_mode 'border' is not supported"):
        preprocessing_of(weight_files.Source("a", {}, config))


@pytest.mark.parametrize("place", [70, 500])  # for zlib, and for its checksum
def test_a_compressed_npz_that_is_damaged(place, tmp_path):
    np.savez_compressed(tmp_path / "a.npz", kernel=np.arange(1000.0))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[place] ^= 0xFF
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npz"):
        weight_files.open_source(tmp_path / "a.npz")


def test_preprocessing_without_normalisation_and_names_by_number():
    preprocessing = {"image_mean": [0.5], "image_std": [0.5], "do_normalize": False}
    names = {"label_names": {"1": "b", "0": "a"}}
    found = preprocessing_of(weight_files.Source("a", {}, names, preprocessing))
    assert found["mean"] == (0.0,) and found["std"] == (1.0,)
    assert found["class_names"] == ("a", "b")
