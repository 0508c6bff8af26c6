"""float64 stays float64, the state stays float32, strict promotion is enough."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import AirbenchNet, BasicBlock, BottleneckBlock, ResNet
from resnet_jax.batch_norm import batch_norm, batch_statistics
from resnet_jax.cpu.convolution import conv_general_dilated
from resnet_jax.cpu.direct import direct_conv3x3
from resnet_jax.cpu.winograd import conv3x3
from tests import dtypes, modules
from tests.modules import normal

_resnet = functools.partial(ResNet, 3, stage_sizes=(1, 1), width=4)
_ours = {"conv_general_dilated": conv_general_dilated}
MODELS = {
    "small": _resnet,
    "small_cpu": functools.partial(_resnet, width=16, **_ours),
    "imagenet": functools.partial(_resnet, stem="imagenet", block=BottleneckBlock),
    "imagenet_cpu": functools.partial(_resnet, stem="imagenet", **_ours),
    "block": functools.partial(BasicBlock, 8, stride=2),
    "bottleneck": functools.partial(BottleneckBlock, 8),
}


def _image(dtype: Any) -> jax.Array:
    return normal(16, 8, 8, 3).astype(dtype)


@pytest.mark.parametrize("name", MODELS)
def test_float64_is_never_rounded_and_the_state_is_float32(name):
    with jax.enable_x64(True):
        model, image = MODELS[name](dtype=jnp.float64), _image(jnp.float64)
        shapes = modules.shapes(model, image)
        assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
        found, out = dtypes.roundings(model.apply, shapes, image)
        assert found == [] and out.dtype == jnp.float64
        out, updated = jax.eval_shape(
            functools.partial(model.apply, train=True, mutable=["batch_stats"]),
            shapes,
            image,
        )
        assert out.dtype == jnp.float64
        leaves = jax.tree.leaves(updated)
        assert {x.dtype for x in leaves} == {jnp.dtype("float32")}


@pytest.mark.parametrize("train", [False, True])
def test_a_model_in_float64_has_the_precision_of_float64(train):
    with jax.enable_x64(True):
        image = _image(jnp.float64)
        model = MODELS["small_cpu"](dtype=jnp.float64)
        variables = modules.variables(model, image)
        how = {"train": train, "mutable": ["batch_stats"]}
        wide = jax.tree.map(lambda x: x.astype(jnp.float64), variables)
        dtypes.assert_smooth(lambda v: model.apply(v, image, **how)[0], wide)
        ours, _ = jax.jit(functools.partial(model.apply, **how))(variables, image)
        plain = model.clone(conv_general_dilated=jax.lax.conv_general_dilated)
        expected, _ = jax.jit(functools.partial(plain.apply, **how))(variables, image)
        np.testing.assert_allclose(ours, expected, atol=1e-11)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float64])
@pytest.mark.parametrize("name", MODELS)
def test_models_need_no_implicit_promotion(name, dtype):
    with (
        jax.enable_x64(dtype == jnp.float64),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
    ):
        model, image = MODELS[name](dtype=dtype), _image(dtype)
        variables = modules.shapes(model, image)

        def loss(params, rest, train):
            out, _ = model.apply(
                {"params": params, **rest}, image, train=train, mutable=["batch_stats"]
            )
            return out.sum().astype(jnp.float32)

        params = variables.pop("params")
        for train in (False, True):
            gradient = jax.jit(jax.grad(loss), static_argnums=2)
            gradient.trace(params, variables, train)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", ["small", "block", "bottleneck"])
def test_images_of_another_dtype_are_taken_under_strict_promotion(name, dtype):
    other = jnp.bfloat16 if dtype == jnp.float32 else jnp.float32
    with jax.numpy_dtype_promotion("strict"):
        model = MODELS[name](dtype=dtype)
        init = functools.partial(model.init_with_output, jax.random.key(0))
        out, _ = jax.eval_shape(init, _image(other))
    assert out.dtype == (jnp.float32 if name == "small" else dtype)


@pytest.mark.parametrize("model", [_resnet(), AirbenchNet(3, (4, 4, 4))], ids=type)
def test_logits_are_not_rounded_to_bfloat16(model):
    model = model.clone(dtype=jnp.bfloat16)
    image_BHWC = normal(4, 9, 9, 3)
    variables = modules.variables(model, image_BHWC)
    feature_BF = modules.apply(model.clone(num_classes=None), variables, image_BHWC)
    head = {"bias": np.zeros(3), **variables["params"]["head"]}
    num_summed = feature_BF.shape[-1] if isinstance(model, AirbenchNet) else 1
    np.testing.assert_allclose(
        modules.apply(model, variables, image_BHWC),
        np.asarray(feature_BF) @ head["kernel"] / num_summed + head["bias"][None],
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_functions_need_no_implicit_promotion(dtype):
    image, kernel = normal(16, 8, 8, 16).astype(dtype), normal(3, 3, 16, 16)
    kernel, one, zero = kernel.astype(dtype), jnp.ones(16), jnp.zeros(16)

    def loss(image, kernel):
        y = direct_conv3x3(conv3x3(image, kernel), kernel)
        y = conv_general_dilated(y, kernel, (1, 1), [(1, 1)] * 2)
        y = conv_general_dilated(y, kernel, (2, 2), [(1, 1)] * 2)
        return batch_norm(y, *batch_statistics(y), one, zero).sum()

    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        gradients = jax.eval_shape(jax.grad(loss, (0, 1)), image, kernel)
    assert [x.dtype for x in gradients] == [dtype, dtype]


def test_convolution_does_not_round_its_kernel():
    with jax.enable_x64(True), pytest.raises(AssertionError, match="type"):
        image, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2), jnp.float64)
        conv_general_dilated(
            image.astype(jnp.float32), kernel, (1, 1), [(1, 1), (1, 1)]
        )
