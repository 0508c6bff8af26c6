"""Positions: sines and cosines of a grid, rotary embedding, registers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import modules
from tests.modules import apply, normal
from vit_jax import (
    Decoder,
    MultiHeadAttention,
    ViT,
    dot_product_attention,
    rotary_angles,
    rotary_angles_1d,
    rotate,
    sincos2d_position,
)
from vit_jax.interpret import (
    attention_weights,
    mean_attention_distance,
    patch_relevance,
)

IMAGE_BHWC = normal(2, 8, 12, 3)
FIELDS = {"patch_size": 4, "width": 16, "depth": 2, "num_heads": 2}


def test_sincos2d_is_the_formula_of_the_paper():
    rows, columns, width = 2, 3, 16
    position_TD = sincos2d_position((rows, columns), width)
    for row in range(rows):
        for column in range(columns):
            omega = [10_000 ** (-i / (width // 4 - 1)) for i in range(width // 4)]
            expected = [
                *(np.sin(column * w) for w in omega),
                *(np.cos(column * w) for w in omega),
                *(np.sin(row * w) for w in omega),
                *(np.cos(row * w) for w in omega),
            ]
            actual = position_TD[row * columns + column]
            np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_rotation_is_a_product_of_complex_numbers():
    x_BNTK = np.asarray(normal(2, 3, 6, 8))
    turned = np.asarray(rotate(jnp.asarray(x_BNTK), rotary_angles((2, 3), 8)))
    numbers = x_BNTK[..., :4] + 1j * x_BNTK[..., 4:]
    for row in range(2):
        for column in range(3):
            angle = [column, column / 10, row, row / 10]  # 100 to the power of -1/2
            expected = numbers[:, :, 3 * row + column] * np.exp(1j * np.array(angle))
            actual = turned[:, :, 3 * row + column]
            np.testing.assert_allclose(actual[..., :4], expected.real, atol=1e-5)
            np.testing.assert_allclose(actual[..., 4:], expected.imag, atol=1e-5)


def test_tokens_of_a_sequence_turn_as_in_the_paper():
    num_tokens, head_size = 5, 6
    angle = rotary_angles_1d(num_tokens, head_size)
    for position in range(num_tokens):
        for i in range(1, head_size // 2 + 1):
            expected = position * 10_000 ** (-2 * (i - 1) / head_size)
            np.testing.assert_allclose(angle[position, i - 1], expected, rtol=1e-6)


@pytest.mark.parametrize("head_size", [0, 3])
def test_the_head_that_turns_is_even(head_size):
    with pytest.raises(ValueError, match="head_size must be even and at least 2, got"):
        rotary_angles_1d(4, head_size)


def test_attention_with_rope_depends_on_differences_of_positions_alone():
    query, key = normal(1, 1, 1, 8), normal(1, 1, 1, 8, seed=1)
    angle = rotary_angles((4, 5), 8)

    def product(i: int, j: int) -> float:
        return float(
            (rotate(query, angle[i, None]) * rotate(key, angle[j, None])).sum()
        )

    # Tokens (0, 0) and (1, 2), and both shifted by two rows and one column.
    np.testing.assert_allclose(product(0, 7), product(11, 18), rtol=1e-5)
    assert abs(product(0, 7) - product(7, 0)) > 1e-2


def test_multi_head_attention_turns_queries_and_keys():
    x_BTD, angle = normal(2, 5, 16), rotary_angles((2, 2), 8, num_before=1)
    module = MultiHeadAttention(num_heads=2)
    variables = modules.variables(module, *x_BTD.shape)
    out_BTD = apply(module, variables, x_BTD[:, :2], x_BTD, angle=angle)
    params = jax.tree.map(np.asarray, variables["params"])

    def project(name: str, x_BTD):
        x_BTD = np.asarray(x_BTD) @ params[name]["kernel"] + params[name]["bias"]
        x_BTD = jnp.asarray(x_BTD)
        return x_BTD.reshape(2, -1, 2, 8).swapaxes(1, 2)

    query = rotate(project("query", x_BTD[:, :2]), angle[:2])
    key, value = rotate(project("key", x_BTD), angle), project("value", x_BTD)
    attended = dot_product_attention(query, key, value)
    attended = np.asarray(attended).swapaxes(1, 2).reshape(2, 2, 16)
    expected = attended @ params["out"]["kernel"]
    np.testing.assert_allclose(out_BTD, expected + params["out"]["bias"], atol=1e-5)


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("scan", [False, True])
def test_rope_tells_the_order_of_patches(pool, scan):
    module = ViT(5, **FIELDS, pool=pool, scan=scan, position_embedding="rope")
    variables = modules.variables(module, *IMAGE_BHWC.shape)
    logits_BY = apply(module, variables, IMAGE_BHWC)
    swapped = jnp.roll(IMAGE_BHWC, 4, axis=1)  # the two rows of patches
    assert jnp.abs(apply(module, variables, swapped) - logits_BY).max() > 1e-4
    module = module.clone(position_embedding=None)
    logits_BY = apply(module, variables, IMAGE_BHWC)
    np.testing.assert_allclose(apply(module, variables, swapped), logits_BY, atol=1e-5)


@pytest.mark.parametrize("pool", ["cls", "mean", "sequence", "map"])
@pytest.mark.parametrize("position", ["learned", "rope"])
def test_the_last_block_computes_what_is_pooled_alone(pool, position):
    fields = {"pool": pool, "position_embedding": position, "num_registers": 3}
    module = ViT(5, **FIELDS, **fields)
    variables = modules.variables(module, *IMAGE_BHWC.shape)
    logits_BY = apply(module, variables, IMAGE_BHWC)
    # All tokens are computed where intermediates are captured.
    expected, _ = apply(module, variables, IMAGE_BHWC, mutable=("intermediates",))
    np.testing.assert_allclose(logits_BY, expected, atol=1e-5)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_registers_are_attended_to_and_not_pooled(pool):
    module = ViT(5, **FIELDS, pool=pool, num_registers=3)
    variables = modules.variables(module, *IMAGE_BHWC.shape)
    assert variables["params"]["registers"].shape == (1, 3, 16)
    num_tokens = 6 + 3 + (pool == "cls")
    capture = jax.jit(functools.partial(attention_weights, module))
    for weights in capture(variables, IMAGE_BHWC):
        assert weights.shape == (2, 2, num_tokens, num_tokens)
        options = {"has_class_token": pool == "cls", "num_registers": 3}
        relevance_BT = patch_relevance(weights.mean(axis=1), **options)
        first = int(pool == "cls")
        rows = weights.mean(axis=1)[:, :1] if first else weights.mean(axis=1)[:, :6]
        expected = rows.mean(axis=1)[:, first : first + 6]
        expected /= expected.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(relevance_BT, expected, rtol=1e-5)
        distance_N = mean_attention_distance(weights, grid=(2, 3), **options)
        patches = weights[:, :, first : first + 6, first : first + 6]
        expected = mean_attention_distance(patches, grid=(2, 3), has_class_token=False)
        np.testing.assert_allclose(distance_N, expected, rtol=1e-5)
    gradient = jax.jit(
        jax.grad(lambda params: module.apply({"params": params}, IMAGE_BHWC)[0, 0])
    )(variables["params"])
    assert jnp.abs(gradient["registers"]).min() > 0
    # Without blocks nothing attends to them.
    flat = module.clone(depth=0)
    variables = modules.variables(flat, *IMAGE_BHWC.shape)
    logits_BY = apply(flat, variables, IMAGE_BHWC)
    del variables["params"]["registers"]
    expected = apply(flat.clone(num_registers=0), variables, IMAGE_BHWC)
    np.testing.assert_allclose(logits_BY, expected, atol=1e-6)


def test_a_compact_convolutional_transformer_has_the_published_number_of_parameters():
    # CCT-7/3×1 and CCT-2/3×2 of arXiv:2104.05704, table 2: 3.76 and 0.28 million, with
    # no biases of queries, keys and values.
    fields = {"stem": "conv", "pool": "sequence", "num_classes": 10}
    large = ViT(**fields, patch_size=2, width=256, depth=7, num_heads=4, mlp_ratio=2.0)
    small = ViT(**fields, patch_size=4, width=128, depth=2, num_heads=2, mlp_ratio=1.0)
    counts = [
        sum(leaf.size for leaf in jax.tree.leaves(modules.shapes(m, 1, 32, 32, 3)))
        - 3 * m.depth * m.width
        for m in (large, small)
    ]
    assert [round(count / 1e6, 2) for count in counts] == [3.76, 0.28]


def test_convolutions_of_the_stem_can_be_replaced():
    calls = []

    def convolve(*args, **kwargs):
        calls.append(args[1].shape)
        return jax.lax.conv_general_dilated(*args, **kwargs)

    module = ViT(5, **FIELDS, stem="conv", conv_general_dilated=convolve)
    modules.shapes(module, *IMAGE_BHWC.shape)
    assert calls == [(3, 3, 3, 64), (3, 3, 64, 16)]
    assert module.has_convolutions and not ViT(5, **FIELDS).has_convolutions


def test_a_decoder_with_rope_decodes_token_by_token():
    x_BTD, angle = normal(2, 6, 16), rotary_angles((2, 3), 8)
    decoder = Decoder(depth=2, num_heads=2, mlp_dim=24)
    variables = modules.variables(decoder, *x_BTD.shape)
    expected = apply(decoder, variables, x_BTD, angle=angle)
    assert not np.allclose(expected, apply(decoder, variables, x_BTD), atol=1e-3)
    step = functools.partial(apply, decoder, decode=True, mutable=("cache",))
    _, cache = step(variables, x_BTD)
    for start, stop in ((0, 2), (2, 3), (3, 6)):
        part, rows = x_BTD[:, start:stop], angle[start:stop]
        out_BTD, cache = step({**variables, **cache}, part, angle=rows)
        np.testing.assert_allclose(out_BTD, expected[:, start:stop], atol=1e-5)
