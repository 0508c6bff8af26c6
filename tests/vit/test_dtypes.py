"""float64 stays float64, parameters stay float32, strict promotion is enough."""

import contextlib
import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import dtypes, modules
from tests.modules import normal
from vit_jax import (
    Decoder,
    Encoder,
    MultiHeadAttention,
    Seq2SeqTransformer,
    Transformer,
    ViT,
    causal_mask,
    combine_masks,
    dot_product_attention,
    greedy_decode,
    interpret,
    padding_mask,
    patchify,
    sinusoidal_position,
)
from vit_jax.layers import dropout, layer_norm
from vit_jax.weights import resize_patch_embedding

IMAGE = ((2, 8, 8, 3),)
X = ((2, 5, 16),)
TOKENS = np.array([[1, 2, 3, 0], [4, 5, 6, 7]], np.int32)

_vit = functools.partial(
    ViT, num_classes=3, patch_size=4, width=16, depth=2, num_heads=2
)
_stack = {"num_heads": 2, "mlp_dim": 8}
_depths = {"encoder_depth": 1, "decoder_depth": 1}
_rates = {"dropout_rate": 0.1, "attention_dropout_rate": 0.1}
_sequences = functools.partial(
    Seq2SeqTransformer, vocab_size=8, width=16, **_stack, **_depths
)
# name → (module but for its dtype, its inputs: shapes, or the arrays themselves).
MODELS: dict[str, tuple[Any, tuple]] = {
    "vit": (functools.partial(_vit, **_rates, embedding_dropout_rate=0.1), IMAGE),
    "vit_mean": (functools.partial(_vit, pool="mean", representation_size=4), IMAGE),
    "vit_depth": (functools.partial(_vit, stochastic_depth_rate=0.1), IMAGE),
    "vit_post": (functools.partial(_vit, norm="post"), IMAGE),
    "vit_scan": (functools.partial(_vit, scan=True, remat=True), IMAGE),
    "vit_fused": (functools.partial(_vit, attention_implementation="xla"), IMAGE),
    "attention": (functools.partial(MultiHeadAttention, 2), X),
    "encoder": (functools.partial(Encoder, depth=1, num_outputs=2, **_stack), X),
    "decoder": (functools.partial(Decoder, depth=1, **_stack), X),
    "transformer": (functools.partial(Transformer, **_stack, **_depths), X * 2),
    "sequences": (functools.partial(_sequences, dropout_rate=0.1), (TOKENS, TOKENS)),
}


def test_logits_are_not_rounded_to_bfloat16():
    model = _vit(dtype=jnp.bfloat16)
    image_BHWC = normal(*IMAGE[0])
    variables = modules.variables(model, image_BHWC)
    feature_BD = modules.apply(model.clone(num_classes=None), variables, image_BHWC)
    head = variables["params"]["head"]
    np.testing.assert_allclose(
        modules.apply(model, variables, image_BHWC),
        np.asarray(feature_BD) @ head["kernel"] + head["bias"][None],
        rtol=1e-5,
        atol=1e-6,
    )


def _inputs(name: str, dtype: Any) -> list[jax.Array]:
    return [
        jnp.asarray(normal(*x) if isinstance(x, tuple) else x).astype(
            dtype if isinstance(x, tuple) else jnp.int32
        )
        for x in MODELS[name][1]
    ]


def _modes(model: nn.Module) -> tuple[bool, ...]:
    """Values of `train` that differ: it reaches dropout and stochastic depth alone."""
    names = (x.name for x in dataclasses.fields(model) if x.name.endswith("rate"))
    is_random = any(getattr(model, name) > 0 for name in names)
    return (False, True) if is_random else (False,)


def _strict() -> contextlib.ExitStack:
    stack = contextlib.ExitStack()
    stack.enter_context(jax.numpy_dtype_promotion("strict"))
    stack.enter_context(jax.numpy_rank_promotion("raise"))
    return stack


@pytest.mark.parametrize("name", MODELS)
def test_float64_is_never_rounded_and_parameters_are_float32(name):
    with jax.enable_x64(True):
        model, inputs = MODELS[name][0](dtype=jnp.float64), _inputs(name, jnp.float64)
        shapes = modules.shapes(model, *inputs)
        assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
        for train in _modes(model):
            apply = functools.partial(
                model.apply, train=train, rngs={"dropout": jax.random.key(0)}
            )
            found, out = dtypes.roundings(apply, shapes, *inputs)
            assert found == [] and out.dtype == jnp.float64


@pytest.mark.parametrize("name", ["vit", "vit_fused", "sequences"])
def test_a_model_in_float64_has_the_precision_of_float64(name):
    model = MODELS[name][0](dtype=jnp.float64)
    with jax.enable_x64(True):
        inputs = _inputs(name, jnp.float64)
        variables = modules.variables(model, *inputs)
        wide = jax.tree.map(lambda x: x.astype(jnp.float64), variables)
        dtypes.assert_smooth(lambda v: model.apply(v, *inputs), wide)
        out = modules.apply(model, variables, *inputs)
    single = MODELS[name][0]()
    expected = modules.apply(single, variables, *_inputs(name, jnp.float32))
    np.testing.assert_allclose(out, expected, atol=1e-4)


def test_attention_in_float64_is_that_of_numpy():
    query, key, value = np.random.default_rng(0).standard_normal((3, 2, 5, 8))
    logits = query @ key.swapaxes(1, 2) / 8**0.5
    expected = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    with jax.enable_x64(True):
        out, weights = dot_product_attention(query, key, value, return_weights=True)
        assert out.dtype == weights.dtype == jnp.float64
        np.testing.assert_allclose(weights, expected, rtol=1e-13)
        np.testing.assert_allclose(out, expected @ value, atol=1e-13)


def test_positions_in_float64_are_those_of_numpy():
    with jax.enable_x64(True):
        position_TD = sinusoidal_position(50, 8, dtype=jnp.float64)
        angle_T = np.arange(50) / 10000 ** (4 / 8)
        np.testing.assert_allclose(position_TD[:, 4], np.sin(angle_T), atol=1e-15)
        assert sinusoidal_position(50, 8).dtype == jnp.float32


def test_layer_norm_and_dropout_in_float64_are_exact():
    x_BD = np.random.default_rng(0).standard_normal((4, 16)) + 2000
    with jax.enable_x64(True):
        out_BD = layer_norm(jnp.asarray(x_BD), jnp.ones(16), jnp.zeros(16))
        variance_B1 = x_BD.var(axis=1, keepdims=True)
        expected_BD = (x_BD - x_BD.mean(axis=1, keepdims=True)) / variance_B1**0.5
        np.testing.assert_allclose(out_BD, expected_BD, rtol=1e-5)
        out_BD = np.asarray(dropout(jax.random.key(0), jnp.asarray(x_BD), rate=0.3))
        expected_BD = np.where(out_BD == 0, 0, x_BD / 0.7)
        np.testing.assert_allclose(out_BD, expected_BD, rtol=1e-14)


def _looks(dtype: Any) -> dict[str, jax.Array]:
    """What the functions of `interpret` make of given weights."""
    weights = jax.nn.softmax(normal(2, 3, 5, 5), axis=-1).astype(dtype)
    token = {"has_class_token": True}
    return {
        "rollout": interpret.attention_rollout([weights, weights]),
        "relevance": interpret.patch_relevance(weights[:, 0], **token),
        "distance": interpret.mean_attention_distance(weights, grid=(2, 2), **token),
        "similarity": interpret.position_similarity(
            normal(1, 5, 8).astype(dtype), **token
        ),
    }


def test_float64_is_interpreted_in_float64_and_bfloat16_in_float32():
    with jax.enable_x64(True):
        looks = _looks(jnp.float64)
        assert {x.dtype for x in looks.values()} == {jnp.dtype("float64")}
        np.testing.assert_allclose(looks["rollout"].sum(axis=-1), 1, atol=1e-14)
    exact, looks = _looks(jnp.float32), _looks(jnp.bfloat16)
    for name, found in looks.items():
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, exact[name], atol=0.02)
    # In bfloat16 a sum of 5 numbers would be right to 1/256.
    np.testing.assert_allclose(looks["rollout"].sum(axis=-1), 1, atol=1e-6)
    np.testing.assert_allclose(looks["relevance"].sum(axis=-1), 1, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float64])
@pytest.mark.parametrize("name", MODELS)
def test_models_need_no_implicit_promotion(name, dtype):
    with jax.enable_x64(dtype == jnp.float64), _strict():
        model, inputs = MODELS[name][0](dtype=dtype), _inputs(name, dtype)
        params = modules.shapes(model, *inputs)["params"]

        def loss(params, train):
            rngs = {"dropout": jax.random.key(0)}
            out = model.apply({"params": params}, *inputs, train=train, rngs=rngs)
            return out.sum().astype(jnp.float32)

        for train in _modes(model):
            traced = jax.jit(jax.grad(loss), static_argnums=1).trace(params, train)
            if name == "vit_fused":  # what JAX's attention promotes, it does here
                traced.lower()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_models_take_tokens_of_another_dtype_under_strict_promotion(dtype):
    other = jnp.bfloat16 if dtype == jnp.float32 else jnp.float32
    for name in ("vit", "attention", "encoder", "decoder", "transformer"):
        with _strict():
            model = MODELS[name][0](dtype=dtype)
            out, _ = jax.eval_shape(
                functools.partial(model.init_with_output, jax.random.key(0)),
                *_inputs(name, other),
            )
        assert out.dtype == (jnp.float32 if name == "vit" else dtype)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("is_x64", [False, True])
def test_decoding_needs_no_implicit_promotion(dtype, is_x64):
    model = _sequences(dtype=dtype)
    with jax.enable_x64(is_x64), _strict():
        variables = modules.variables(model, TOKENS, TOKENS)
        decode = functools.partial(greedy_decode, model, start_token=7, num_tokens=3)
        target_BT = jax.eval_shape(decode, variables, jnp.asarray(TOKENS))
        assert target_BT.shape == (2, 3) and target_BT.dtype == jnp.int32


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_functions_need_no_implicit_promotion(dtype):
    query, key, value = (normal(2, 3, 5, 8, seed=i).astype(dtype) for i in range(3))
    model = _vit(dtype=dtype)
    variables = modules.variables(model, *IMAGE[0])
    expected = _looks(dtype)
    with _strict():
        lengths_B = jnp.asarray([1, 5], jnp.uint8)
        mask = combine_masks(causal_mask(5), padding_mask(lengths_B, 5), None)

        def loss(*qkv):
            out = dot_product_attention(*qkv, mask)
            return dropout(jax.random.key(0), out, rate=0.1).sum()

        jax.eval_shape(jax.grad(loss, (0, 1, 2)), query, key, value)
        one, zero = jnp.ones(8), jnp.zeros(8)
        jax.eval_shape(jax.grad(lambda x: layer_norm(x, one, zero).sum()), query)
        patchify(normal(*IMAGE[0]).astype(dtype), 4)
        sinusoidal_position(4, 8, dtype=dtype)
        kernel = jnp.ones((12, 5), dtype)
        assert resize_patch_embedding(kernel, 2, 3).dtype == dtype
        capture = jax.jit(functools.partial(interpret.attention_weights, model))
        layers = capture(variables, normal(*IMAGE[0]).astype(dtype))
        rollout_BTT = interpret.attention_rollout(layers)
        np.testing.assert_allclose(rollout_BTT.sum(axis=-1), 1, atol=1e-6)
        for name, found in _looks(dtype).items():
            np.testing.assert_array_equal(found, expected[name])
