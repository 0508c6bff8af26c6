"""The ResNet: parameter counts, shapes, shortcuts, BatchNorm, what it rejects."""

import functools
import math

import chex
import flax.errors
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import resnet_jax
from resnet_jax import BasicBlock, BottleneckBlock, ResNet
from tests import modules
from tests.modules import apply, normal

IMAGE_BHWC = normal(4, 9, 8, 3)


def _resnet(**fields) -> ResNet:
    defaults = {"num_classes": 5, "stage_sizes": (1, 1), "width": 4}
    return ResNet(**(defaults | fields))


def _variables() -> dict:
    return modules.variables(_resnet(), *IMAGE_BHWC.shape)


# Preset → side of an image, number of classes, of features, of parameters.
COUNTS = {
    "ResNet18": (32, 10, 512, 11_173_962),
    "ResNet34": (32, 10, 512, 21_282_122),
    "ResNet18_ImageNet": (224, 1000, 512, 11_689_512),
    "ResNet34_ImageNet": (224, 1000, 512, 21_797_672),
    "ResNet50_ImageNet": (224, 1000, 2048, 25_557_032),
    "ResNet101_ImageNet": (224, 1000, 2048, 44_549_160),
    "ResNet152_ImageNet": (224, 1000, 2048, 60_192_808),
    "ResNet20": (32, 10, 64, 269_722),
    "ResNet32": (32, 10, 64, 464_154),
    "ResNet44": (32, 10, 64, 658_586),
    "ResNet56": (32, 10, 64, 853_018),
    "ResNet110": (32, 10, 64, 1_727_962),
}


@pytest.mark.parametrize("name", COUNTS)
def test_preset_has_the_published_number_of_features_and_of_parameters(name):
    side, num_classes, num_features, num_params = COUNTS[name]
    module = getattr(resnet_jax, name)(num_classes=None)
    features_BF, variables = jax.eval_shape(
        module.init_with_output,
        jax.random.key(0),
        jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32),
    )
    assert features_BF.shape == (2, num_features)
    leaves = jax.tree.leaves(variables["params"])
    # The head, which is left out here, has a kernel and a bias.
    in_head = (num_features + 1) * num_classes
    assert sum(math.prod(leaf.shape) for leaf in leaves) + in_head == num_params


def test_without_classes_it_gives_the_features_that_the_head_reads():
    variables = _variables()
    features_BF = apply(_resnet(num_classes=None), variables, IMAGE_BHWC)
    head = variables["params"]["head"]
    logits_BY = features_BF @ head["kernel"] + head["bias"][None]
    expected_BY = apply(_resnet(), variables, IMAGE_BHWC)
    np.testing.assert_allclose(logits_BY, expected_BY, rtol=1e-5, atol=1e-5)


def test_every_preset_has_a_parameter_count():
    exported = {
        name
        for name, value in vars(resnet_jax).items()
        if isinstance(value, functools.partial)
    }
    assert exported == set(COUNTS)


@pytest.mark.parametrize(
    "stem, side, expected",
    [
        ("small", 32, (32, 16, 8, 4)),
        ("small", 33, (33, 17, 9, 5)),
        ("imagenet", 224, (56, 28, 14, 7)),
        ("imagenet", 97, (25, 13, 7, 4)),
    ],
)
def test_resnet_stages_have_strides_1_2_2_2(stem, side, expected):
    module = resnet_jax.ResNet18(num_classes=10, stem=stem)
    mutable = ["params", "batch_stats", "intermediates"]
    captured = modules.shapes(
        module, 2, side, side, 3, capture_intermediates=True, mutable=mutable
    )["intermediates"]
    for stage, height in enumerate(expected, start=1):
        for block in (1, 2):
            (out,) = captured[f"stage{stage}_block{block}"]["__call__"]
            assert out.shape == (2, height, height, 64 * 2 ** (stage - 1))


@pytest.mark.parametrize(
    "name, projected",
    [
        ("ResNet18", {2, 3, 4}),
        ("ResNet34", {2, 3, 4}),
        ("ResNet50_ImageNet", {1, 2, 3, 4}),
    ],
)
def test_resnet_projects_shortcuts_exactly_where_the_shape_changes(name, projected):
    params = modules.shapes(getattr(resnet_jax, name)(num_classes=10), 1, 32, 32, 3)[
        "params"
    ]
    found = {block for block, layers in params.items() if "shortcut_conv" in layers}
    assert found == {f"stage{stage}_block1" for stage in projected}
    assert found == {block for block, x in params.items() if "shortcut_norm" in x}
    for block in found:
        assert params[block]["shortcut_conv"]["kernel"].shape[:2] == (1, 1)


@pytest.mark.parametrize("block", [BasicBlock, BottleneckBlock])
@pytest.mark.parametrize("grow, stride", [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_block_projects_its_shortcut_exactly_where_the_shape_changes(
    block, grow, stride
):
    features = 2 * grow
    module = block(features, stride=stride)
    variables = modules.shapes(module, 2, 7, 6, 2 * block.expansion)
    assert ("shortcut_conv" in variables["params"]) == (grow > 1 or stride > 1)


@pytest.mark.parametrize("block", [BasicBlock, BottleneckBlock])
def test_block_adds_its_own_input(block):
    module = block(3 // block.expansion or 1)
    x_BHWC = IMAGE_BHWC if block is BasicBlock else IMAGE_BHWC[..., :1].repeat(4, -1)
    variables = modules.variables(module, *x_BHWC.shape)
    last = "norm2" if block is BasicBlock else "norm3"
    params = variables["params"]
    params[last] = jax.tree.map(jnp.zeros_like, params[last])
    out_BHWC = apply(module, variables, x_BHWC)
    np.testing.assert_array_equal(out_BHWC, jnp.maximum(x_BHWC, 0))


def test_resnet_updates_its_statistics_in_training_only():
    module, variables = _resnet(), _variables()

    def updated(train):
        mutable = ("batch_stats",)
        _, state = apply(module, variables, IMAGE_BHWC, train=train, mutable=mutable)
        return state["batch_stats"]

    before = variables["batch_stats"]
    chex.assert_trees_all_equal(updated(train=False), before)
    after = updated(train=True)
    chex.assert_trees_all_equal_shapes(after, before)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert (np.asarray(old) != np.asarray(new)).all()


def test_resnet_refuses_to_train_with_frozen_statistics():
    with pytest.raises(flax.errors.ModifyScopeVariableError, match="batch_stats"):
        _resnet().apply(_variables(), IMAGE_BHWC, train=True)


@pytest.mark.parametrize("train", [False, True])
def test_resnet_logits_depend_on_the_rest_of_the_batch_in_training_only(train):
    def logits(image_BHWC):
        settings = {"train": train, "mutable": ("batch_stats",)}
        return apply(_resnet(), _variables(), image_BHWC, **settings)[0]

    logits_BY = logits(IMAGE_BHWC)
    others_BY = logits(IMAGE_BHWC.at[1:].multiply(-2))
    assert np.array_equal(logits_BY[0], others_BY[0]) == (not train)
    assert not np.array_equal(logits_BY[1], others_BY[1])


@pytest.mark.parametrize("num_classes", [1, 5])
def test_resnet_keeps_the_batch_axis_of_a_single_image(num_classes):
    module = _resnet(num_classes=num_classes)
    variables = modules.variables(module, *IMAGE_BHWC.shape)
    logits_BY = apply(module, variables, IMAGE_BHWC)
    single_BY = apply(module, variables, IMAGE_BHWC[:1])
    assert logits_BY.shape == (4, num_classes)
    assert single_BY.shape == (1, num_classes)
    np.testing.assert_allclose(single_BY, logits_BY[:1], atol=1e-5)


def test_resnet_computes_in_bfloat16_with_float32_state_and_logits():
    module = _resnet(dtype=jnp.bfloat16)
    variables = _variables()
    settings = {"train": True, "mutable": ("batch_stats", "intermediates")}
    settings["capture_intermediates"] = True
    logits_BY, updated = apply(module, variables, IMAGE_BHWC, **settings)
    assert logits_BY.dtype == jnp.float32
    (x_BHWC,) = updated["intermediates"]["stage2_block1"]["__call__"]
    assert x_BHWC.dtype == jnp.bfloat16
    state = modules.shapes(module, 1, 9, 8, 3), updated["batch_stats"]
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(state)}
    assert dtypes == {jnp.dtype("float32")}
    exact_BY, _ = apply(_resnet(), variables, IMAGE_BHWC, **settings)
    np.testing.assert_allclose(logits_BY, exact_BY, atol=0.1)


def test_resnet_is_the_same_under_jit_and_is_traced_once():
    chex.clear_trace_counter()
    module, variables = _resnet(), _variables()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def classify(variables, image_BHWC):
        return module.apply(variables, image_BHWC)

    for image_BHWC in (IMAGE_BHWC, -IMAGE_BHWC):
        expected_BY = module.apply(variables, image_BHWC)
        logits_BY = classify(variables, image_BHWC)
        np.testing.assert_allclose(logits_BY, expected_BY, atol=1e-5)


def test_resnet_rejects_an_unknown_stem():
    message = r"(?m)^stem must be one of \('small', 'imagenet'\), got 'large'$"
    with pytest.raises(ValueError, match=message):
        modules.shapes(_resnet(stem="large"), 1, 8, 8, 3)


def test_resnet_rejects_unknown_fields():
    with pytest.raises(TypeError, match="unexpected keyword argument 'depth'"):
        _resnet(depth=18)


@pytest.mark.parametrize("shape", [(8, 8, 3), (1, 2, 8, 8, 3)])
@pytest.mark.parametrize("module", [_resnet(), BasicBlock(4), BottleneckBlock(4)])
def test_resnet_rejects_images_of_other_rank(module, shape):
    with pytest.raises(AssertionError, match="rank"):
        modules.shapes(module, *shape)


def test_a_block_alone_refuses_an_unknown_shortcut():
    block = BasicBlock(8, shortcut="pad")  # type: ignore
    with pytest.raises(
        ValueError, match=r"one of \('projection', 'padding'\), got 'pa"
    ):
        block.init(jax.random.key(0), jnp.ones((1, 4, 4, 4)))


@pytest.mark.parametrize("block", [BasicBlock(8), BottleneckBlock(2)])
def test_a_block_may_start_as_its_shortcut(block):
    x_BHWC = normal(2, 4, 4, 8)
    block = block.clone(zero_init_residual=True)
    out_BHWF, _ = jax.jit(block.init_with_output)(jax.random.key(0), x_BHWC)
    np.testing.assert_array_equal(out_BHWF, np.maximum(x_BHWC, 0))


def test_fields_reach_every_block_and_batch_norm():
    resnet = _resnet(zero_init_residual=True, momentum=1.0)
    variables = jax.jit(resnet.init)(jax.random.key(0), IMAGE_BHWC)
    flat = flax.traverse_util.flatten_dict(variables["params"], sep="/")
    zeros = {k for k, x in flat.items() if k.endswith("scale") and not x.any()}
    assert zeros == {f"stage{n}_block1/norm2/scale" for n in (1, 2)}
    mutable = {"train": True, "mutable": ("batch_stats",)}
    _, updated = apply(resnet, variables, IMAGE_BHWC, **mutable)
    chex.assert_trees_all_equal(updated["batch_stats"], variables["batch_stats"])


def test_the_map_is_what_is_pooled():
    variables = _variables()
    map_BHWF = apply(_resnet(), variables, IMAGE_BHWC, return_map=True)
    assert map_BHWF.shape == (4, 5, 4, 8)
    features_BF = apply(_resnet(num_classes=None), variables, IMAGE_BHWC)
    np.testing.assert_allclose(map_BHWF.mean(axis=(1, 2)), features_BF, rtol=1e-6)
