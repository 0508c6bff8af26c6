"""Attention weights captured from a normal forward pass, and what is made of them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import ResNet
from tests import modules
from tests.modules import normal
from vit_jax import Encoder, MultiHeadAttention, Transformer, ViT, patchify
from vit_jax.interpret import (
    attention_rollout,
    attention_weights,
    mean_attention_distance,
    patch_relevance,
    pool_weights,
    position_similarity,
)

IMAGE_BHWC = modules.normal(2, 8, 8, 1)
DEPTH = 11  # so that the layers' names sort otherwise than their numbers


def test_every_layer_in_order_with_rows_that_sum_to_one():
    model = ViT(3, patch_size=4, width=4, depth=DEPTH, num_heads=2)
    variables = modules.variables(model, *IMAGE_BHWC.shape)
    capture = jax.jit(lambda v, x: attention_weights(model, v, x))
    layers = capture(variables, IMAGE_BHWC)
    assert [layer.shape for layer in layers] == [(2, 2, 5, 5)] * DEPTH
    np.testing.assert_allclose(np.stack(layers).sum(axis=-1), 1, atol=1e-6)

    # The weights of a layer depend on the layers before it, and on no later one.
    encoder = dict(variables["params"]["encoder"])
    name = f"block_{DEPTH - 2}"
    encoder[name] = jax.tree.map(lambda x: 2 * x, encoder[name])
    changed = {"params": variables["params"] | {"encoder": encoder}}
    others = capture(changed, IMAGE_BHWC)
    same = [np.array_equal(a, b) for a, b in zip(layers, others, strict=True)]
    assert same == [True] * (DEPTH - 2) + [False, False]


def test_scanned_blocks_are_captured_one_by_one():
    model = ViT(3, patch_size=4, width=8, depth=3, num_heads=2, scan=True)
    variables = modules.variables(model, *IMAGE_BHWC.shape)
    layers = attention_weights(model, variables, IMAGE_BHWC)
    params = dict(variables["params"])
    encoder = dict(params["encoder"])
    blocks = encoder.pop("blocks")
    for layer in range(3):
        encoder[f"block_{layer}"] = jax.tree.map(lambda x, i=layer: x[i], blocks)
    expected = attention_weights(
        model.copy(scan=False), {"params": params | {"encoder": encoder}}, IMAGE_BHWC
    )
    assert len(layers) == 3
    np.testing.assert_allclose(layers, expected, atol=1e-6)


def test_a_model_without_attention_has_none():
    model = ResNet(3, stage_sizes=(1,), width=2)
    variables = modules.variables(model, *IMAGE_BHWC.shape)
    assert attention_weights(model, variables, IMAGE_BHWC) == []


def test_captured_weights_are_softmax_of_queries_and_keys():
    model = ViT(3, patch_size=4, width=8, depth=1, num_heads=2)
    variables = modules.variables(model, *IMAGE_BHWC.shape)
    params = jax.tree.map(np.asarray, variables["params"])
    embedding, block = params["embedding"], params["encoder"]["block_0"]
    x_BTD = np.asarray(patchify(IMAGE_BHWC, 4)) @ embedding["kernel"]
    x_BTD += embedding["bias"]
    cls_B1D = np.broadcast_to(params["cls"], (2, 1, 8))
    x_BTD = np.concatenate([cls_B1D, x_BTD], axis=1) + params["pos_embedding"]
    norm = nn.LayerNorm(epsilon=1e-6)
    y_BTD = np.asarray(norm.apply({"params": block["attention_norm"]}, x_BTD))
    for head in range(2):
        columns = slice(4 * head, 4 * head + 4)
        query, key = (
            (y_BTD @ block["attention"][name]["kernel"])[..., columns]
            + block["attention"][name]["bias"][columns]
            for name in ("query", "key")
        )
        logits_BTT = query @ key.swapaxes(1, 2) / 4**0.5
        exponential_BTT = np.exp(logits_BTT)
        expected_BTT = exponential_BTT / exponential_BTT.sum(axis=-1, keepdims=True)
        (weights_BNTT,) = attention_weights(model, variables, IMAGE_BHWC)
        np.testing.assert_allclose(weights_BNTT[:, head], expected_BTT, atol=1e-5)


def test_the_weights_of_a_decoder_are_found_by_their_path():
    model = Transformer(num_heads=2, mlp_dim=8, encoder_depth=1, decoder_depth=2)
    source_BSD, target_BTD = modules.normal(2, 6, 4), modules.normal(2, 3, 4)
    variables = modules.variables(model, source_BSD, target_BTD)

    def shapes(where):
        layers = attention_weights(
            model, variables, source_BSD, target_BTD, where=where
        )
        return [layer.shape for layer in layers]

    assert shapes("decoder/block_*/cross_attention") == [(2, 2, 3, 6)] * 2
    assert shapes("decoder/block_*/attention") == [(2, 2, 3, 3)] * 2
    assert shapes("encoder/block_*/attention") == [(2, 2, 6, 6)]


def _weights(*shape, seed=0):
    """Random attention weights."""
    return jax.nn.softmax(2 * modules.normal(*shape, seed=seed), axis=-1)


def test_the_weights_of_a_module_without_the_argument_train():
    x_BTD = modules.normal(2, 4, 8)

    class Mixer(nn.Module):
        @nn.compact
        def __call__(self, x_BTD, mask):
            return MultiHeadAttention(2, name="attention")(x_BTD, mask=mask)

    mask = jnp.eye(4, dtype=bool)
    variables = Mixer().init(jax.random.key(0), x_BTD, mask)
    (weights_BNTT,) = attention_weights(
        Mixer(), variables, x_BTD, where="attention", mask=mask
    )
    np.testing.assert_array_equal(weights_BNTT, np.broadcast_to(mask, (2, 2, 4, 4)))


@pytest.mark.parametrize("pool", ["sequence", "map"])
def test_relevance_is_weighted_as_the_patches_are_pooled(pool):
    fields = {"patch_size": 4, "width": 8, "depth": 1, "num_heads": 2}
    model = ViT(3, **fields, pool=pool, num_registers=1)
    variables = modules.variables(model, *IMAGE_BHWC.shape)
    weight_BT = pool_weights(model, variables, IMAGE_BHWC)
    np.testing.assert_allclose(weight_BT.sum(axis=1), 1, atol=1e-6)
    encoder = Encoder(depth=1, num_heads=2, mlp_dim=32)
    params = jax.tree.map(np.asarray, variables["params"])
    x_BTD = np.asarray(patchify(IMAGE_BHWC, 4)) @ params["embedding"]["kernel"]
    x_BTD += params["embedding"]["bias"] + params["pos_embedding"]
    registers = np.broadcast_to(params["registers"], (2, 1, 8))
    x_BTD = np.concatenate([x_BTD, registers], axis=1)
    out_BTD = np.asarray(encoder.apply({"params": params["encoder"]}, x_BTD))[:, :4]
    part = params["pool"]
    if pool == "sequence":
        score_BT1 = out_BTD @ part["score"]["kernel"] + part["score"]["bias"]
        expected_BT = jax.nn.softmax(score_BT1[..., 0], axis=1)
    else:
        part = part["attention"] | {"probe": part["probe"]}
        query = part["probe"] @ part["query"]["kernel"] + part["query"]["bias"]
        key = out_BTD @ part["key"]["kernel"] + part["key"]["bias"]
        heads = [slice(0, 4), slice(4, 8)]
        logits = [(query[..., h] * key[..., h]).sum(-1) / 2 for h in heads]
        expected_BT = sum(jax.nn.softmax(x, axis=1) for x in logits) / 2
    np.testing.assert_allclose(weight_BT, expected_BT, atol=1e-5)

    map_BTT = _weights(2, 5, 5)
    relevance_BT = patch_relevance(
        map_BTT, has_class_token=False, num_registers=1, weight_BT=weight_BT
    )
    expected_BT = np.einsum("bt,bts->bs", weight_BT, map_BTT[:, :4, :4])
    expected_BT /= expected_BT.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(relevance_BT, expected_BT, atol=1e-6)


def test_a_class_token_is_not_pooled():
    model = ViT(3, patch_size=4, width=8, depth=1, num_heads=2)
    variables = modules.variables(model, *IMAGE_BHWC.shape)
    with pytest.raises(ValueError, match="the pool 'sequence' or 'map'"):
        pool_weights(model, variables, IMAGE_BHWC)


def test_rollout_of_attention_to_oneself_is_the_identity():
    identity_BNTT = jnp.broadcast_to(jnp.eye(5), (2, 3, 5, 5))
    rollout_BTT = attention_rollout([identity_BNTT] * 4)
    np.testing.assert_allclose(rollout_BTT, identity_BNTT[:, 0], atol=1e-6)


def test_rollout_multiplies_the_layers_from_the_last_to_the_first():
    layers = [_weights(2, 3, 5, 5, seed=seed) for seed in range(3)]
    rollout_BTT = attention_rollout(layers)
    np.testing.assert_allclose(rollout_BTT.sum(axis=-1), 1, atol=1e-6)
    first, second, third = (
        np.asarray(w).mean(axis=1) / 2 + np.eye(5) / 2 for w in layers
    )
    np.testing.assert_allclose(rollout_BTT, third @ second @ first, atol=1e-6)
    first, second, third = (np.asarray(w).mean(axis=1) for w in layers)
    rollout_BTT = attention_rollout(layers, residual=False)
    np.testing.assert_allclose(rollout_BTT, third @ second @ first, atol=1e-6)


def test_rollout_needs_a_layer():
    with pytest.raises(ValueError, match="of at least 1 layer, got none"):
        attention_rollout([])


def test_relevance_is_what_the_classifier_reads():
    map_BTT = _weights(2, 5, 5)
    by_class_token = patch_relevance(map_BTT, has_class_token=True)
    np.testing.assert_allclose(by_class_token.sum(axis=-1), 1, atol=1e-6)
    ratio = by_class_token / map_BTT[:, 0, 1:]
    np.testing.assert_allclose(ratio, ratio[:, :1].repeat(4, axis=1), rtol=1e-5)
    by_mean = patch_relevance(map_BTT, has_class_token=False)
    np.testing.assert_allclose(by_mean, np.asarray(map_BTT).mean(axis=1), atol=1e-6)


@pytest.mark.parametrize("has_class_token", [True, False])
def test_distance_is_that_between_the_patches(has_class_token):
    rows, columns = 2, 3
    first = int(has_class_token)
    tokens = rows * columns + first
    stay_TT, leap_TT = np.eye(tokens), np.zeros((tokens, tokens))
    leap_TT[:, -1] = 1.0  # all look at the patch in the last corner
    weights_BNTT = jnp.asarray(np.stack([stay_TT, leap_TT])[None], jnp.float32)
    distance_N = mean_attention_distance(
        weights_BNTT, grid=(rows, columns), has_class_token=has_class_token
    )
    corner = [np.hypot(1 - y, 2 - x) for y in range(rows) for x in range(columns)]
    np.testing.assert_allclose(distance_N, [0, np.mean(corner)], atol=1e-6)


def test_distance_needs_the_grid_of_the_weights():
    with pytest.raises(
        ValueError, match="2x3 patches makes 7 tokens, got weights of 5"
    ):
        mean_attention_distance(_weights(1, 2, 5, 5), grid=(2, 3), has_class_token=True)


def test_similarity_of_positions_is_a_cosine():
    position_1TD = jnp.array([[[9.0, 9.0], [1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]]])
    similarity_TT = position_similarity(position_1TD, has_class_token=True)
    np.testing.assert_allclose(
        similarity_TT, [[1, 0, -1], [0, 1, 0], [-1, 0, 1]], atol=1e-6
    )


def test_a_pattern_that_finds_nothing_is_an_error():
    encoder = Encoder(depth=2, num_heads=2, mlp_dim=8)
    x_BTD = jnp.ones((1, 3, 4))
    variables = encoder.init(jax.random.key(0), x_BTD)
    with pytest.raises(ValueError, match="one of block_0/attention, block_1/attention"):
        attention_weights(encoder, variables, x_BTD)
    assert len(attention_weights(encoder, variables, x_BTD, where="block_*/*")) == 2


class _Twice(nn.Module):
    """An encoder that goes over its tokens twice."""

    scan: bool = False

    def setup(self) -> None:
        self.encoder = Encoder(depth=2, num_heads=2, mlp_dim=8, scan=self.scan)

    def __call__(self, x_BTD, *, train: bool = False):
        return self.encoder(self.encoder(x_BTD, train=train), train=train)


@pytest.mark.parametrize("scan", [False, True])
def test_a_layer_that_is_called_twice_stands_there_twice(scan):
    model, x_BTD = _Twice(scan=scan), modules.normal(1, 3, 4)
    variables = modules.variables(model, x_BTD)
    once = Encoder(depth=2, num_heads=2, mlp_dim=8, scan=scan)
    params = {"params": variables["params"]["encoder"]}
    inputs = (x_BTD, once.apply(params, x_BTD))
    first, second = (
        attention_weights(once, params, x, where="block*/attention") for x in inputs
    )
    found = attention_weights(model, variables, x_BTD)
    assert not np.array_equal(first, second)
    # Scanned blocks are one layer, which is called twice.
    by_layer = [first[0], second[0], first[1], second[1]]
    expected = [*first, *second] if scan else by_layer
    np.testing.assert_allclose(np.stack(found), np.stack(expected), atol=1e-6)


@pytest.mark.parametrize("scan", [False, True])
def test_what_was_captured_before_is_left_out(scan):
    model = ViT(3, patch_size=4, width=8, depth=2, num_heads=2, scan=scan)
    variables = modules.variables(model, *IMAGE_BHWC.shape)
    _, old = model.apply(variables, 2 * IMAGE_BHWC, mutable=["intermediates"])
    expected = attention_weights(model, variables, IMAGE_BHWC)
    found = attention_weights(model, variables | old, IMAGE_BHWC)
    np.testing.assert_array_equal(np.stack(found), np.stack(expected))


def test_what_reaches_no_patch_is_zero():
    """A class token that attends to itself alone, and positions that are all zero."""
    alone_TT = jnp.eye(5)
    relevance = patch_relevance(alone_TT[None], has_class_token=True)
    np.testing.assert_array_equal(relevance, np.zeros((1, 4)))
    to_class_TT = jnp.zeros((5, 5)).at[:, 0].set(1.0)
    distance = mean_attention_distance(
        to_class_TT[None, None], grid=(2, 2), has_class_token=True
    )
    np.testing.assert_array_equal(distance, [0.0])
    position_1TD = jnp.array([[[0.0, 0.0], [0.0, 3.0]]])
    similarity = position_similarity(position_1TD, has_class_token=False)
    np.testing.assert_array_equal(similarity, [[0, 0], [0, 1]])


def test_weights_must_be_square_and_registers_some_of_the_tokens():
    with pytest.raises(AssertionError):
        mean_attention_distance(
            jnp.ones((1, 1, 1, 4)), grid=(2, 2), has_class_token=False
        )
    for num_registers, message in ((-1, "num_registers must"), (9, "at least 1 patch")):
        with pytest.raises(ValueError, match=message):
            patch_relevance(
                jnp.ones((1, 5, 5)), has_class_token=True, num_registers=num_registers
            )


def test_attention_alone_has_the_empty_path():
    attention, x_BTD = MultiHeadAttention(num_heads=2), modules.normal(2, 3, 4)
    variables = attention.init(jax.random.key(0), x_BTD)
    (weights,) = attention_weights(attention, variables, x_BTD, where="")
    assert weights.shape == (2, 2, 3, 3)
    with pytest.raises(ValueError, match="where must match one of '', got"):
        attention_weights(attention, variables, x_BTD)


def test_arguments_that_are_left_out_may_be_given_as_none():
    model = Transformer(num_heads=2, mlp_dim=8, encoder_depth=1, decoder_depth=1)
    x_BSD = normal(2, 5, 8)
    variables = modules.variables(model, x_BSD, x_BSD)
    (found,) = attention_weights(model, variables, x_BSD, x_BSD, None, None)
    (expected,) = attention_weights(model, variables, x_BSD, x_BSD)
    np.testing.assert_array_equal(found, expected)
