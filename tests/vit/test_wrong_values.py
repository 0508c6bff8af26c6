"""Values out of range: ValueError where they are known, what is said under jit."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import modules
from tests.modules import normal
from vit_jax import (
    Decoder,
    Encoder,
    EncoderBlock,
    MlpBlock,
    MultiHeadAttention,
    Seq2SeqTransformer,
    Transformer,
    ViT,
    dot_product_attention,
    greedy_decode,
    padding_mask,
    patchify,
    sinusoidal_position,
)
from vit_jax.interpret import (
    attention_rollout,
    mean_attention_distance,
    patch_relevance,
    position_similarity,
)
from vit_jax.weights import resize_patch_embedding

X_BTD = normal(2, 5, 16)
SOURCE_BS = jnp.asarray([[1, 2, 3], [4, 5, 6]])
TARGET_BT = jnp.asarray([[7, 1], [7, 2]])

_vit = functools.partial(ViT, patch_size=4, num_heads=2)
_stack = {"num_heads": 2, "mlp_dim": 8}


def _sequences(**fields) -> Seq2SeqTransformer:
    defaults = {"vocab_size": 8, "width": 16, "encoder_depth": 1, "decoder_depth": 1}
    return Seq2SeqTransformer(**(defaults | _stack | fields))


@functools.cache
def _variables() -> dict:
    return modules.variables(_sequences(), SOURCE_BS, TARGET_BT)


def _rejects(message: str):
    return pytest.raises(ValueError, match=f"(?m)^{re.escape(message)}")


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"num_classes": -3}, "num_classes must be at least 1, got -3"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"depth": -1}, "depth must be at least 0, got -1"),
        ({"dtype": None}, "dtype must be a floating-point dtype, got None"),
        ({"representation_size": 0}, "representation_size must be at least 1, got 0"),
        ({"position_std": -0.1}, "position_std must be at least 0, got -0.1"),
        ({"mlp_ratio": 0.0}, "mlp_ratio must leave the MLP a width of at least 1, got"),
        ({"stem": "resnet"}, "stem must be 'patches' or 'conv', got 'resnet'"),
        *(
            (
                {"stem": "conv", "patch_size": patch_size},
                "patch_size must be a power of 2, at least 2, for the stem 'conv', got",
            )
            for patch_size in (1, 6)
        ),
        ({"num_registers": -1}, "num_registers must be at least 0, got -1"),
        (
            {"position_embedding": "sin"},
            "position_embedding must be 'learned', 'sincos2d', 'rope' or None, got",
        ),
        *(
            (
                {"position_embedding": "sincos2d", "width": width},
                "width must be divisible by 4 and at least 8 for the position "
                f"embedding 'sincos2d', got width {width}",
            )
            for width in (4, 10)
        ),
        (
            {"position_embedding": "rope", "width": 12},
            "width / num_heads must be divisible by 4 for the position embedding "
            "'rope', got 6",
        ),
        (
            {"patch_size": 16},
            "patch_size must divide the image's height and width, got",
        ),
    ],
)
def test_vit_rejects_fields_out_of_range(fields, message):
    fields = {"num_classes": 3, "width": 16, "depth": 1} | fields
    with _rejects(message):
        modules.shapes(_vit(**fields), 2, 12, 12, 3)


@pytest.mark.parametrize(
    "shape, message",
    [
        ((2, 0, 8, 3), "patch_size must divide the image's height and width, got"),
        ((2, 8, 0, 3), "patch_size must divide the image's height and width, got"),
        ((2, 8, 8, 0), "channels must be at least 1, got 0"),
    ],
)
def test_images_have_pixels(shape, message):
    for function in (
        functools.partial(patchify, patch_size=4),
        functools.partial(_vit(3, width=16, depth=1).init, jax.random.key(0)),
    ):
        with _rejects(message):
            function(jnp.ones(shape))


@pytest.mark.parametrize(
    "module, message",
    [
        (MlpBlock(0), "mlp_dim must be at least 1, got 0"),
        (EncoderBlock(num_heads=2, mlp_dim=0), "mlp_dim must be at least 1, got 0"),
        (Encoder(depth=-1, **_stack), "depth must be at least 0, got -1"),
        (Encoder(depth=-1, scan=True, **_stack), "depth must be at least 0, got -1"),
        (Decoder(depth=-2, **_stack), "depth must be at least 0, got -2"),
        *(
            (module(num_outputs=number, **fields, **_stack), f"{allowed}, got {number}")
            for module, fields in ((EncoderBlock, {}), (Encoder, {"depth": 0}))
            for number in (0, -1, 6)
            for allowed in [
                "num_outputs must be in [1, 5], the number of tokens, or None"
            ]
        ),
    ],
)
def test_blocks_and_stacks_reject_fields_out_of_range(module, message):
    with _rejects(message):
        modules.shapes(module, 2, 5, 16)


def test_an_image_of_another_size_is_told_what_resizes_the_positions():
    model = _vit(num_classes=3, width=16, depth=1)
    variables = modules.variables(model, 1, 8, 8, 3)
    message = "pos_embedding is for 5 tokens, but the image makes 7; for another size"
    with _rejects(message):
        model.apply(variables, jnp.ones((1, 8, 12, 3)))


def test_boxed_parameters_have_positions():
    model = _vit(num_classes=3, width=16, depth=1)
    variables = modules.variables(model, 1, 8, 8, 3)
    boxed = jax.tree.map(lambda x: nn.Partitioned(x, (None,) * x.ndim), variables)
    assert model.apply(boxed, jnp.ones((1, 8, 8, 3))).shape == (1, 3)


def test_a_patch_embedding_is_one_of_its_size():
    with _rejects("kernel must have a multiple of 3² rows, got 12"):
        resize_patch_embedding(jnp.ones((12, 5)), 3, 4)


@pytest.mark.parametrize("part", ["encoder_depth", "decoder_depth"])
def test_transformer_names_the_depth_that_is_negative(part):
    for model, inputs in (
        (Transformer(**_stack, **{part: -1}), (X_BTD, X_BTD)),
        (_sequences(**{part: -1}), (SOURCE_BS, TARGET_BT)),
    ):
        with _rejects(f"{part} must be at least 0, got -1"):
            modules.shapes(model, *inputs)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"vocab_size": 0}, "vocab_size must be at least 1, got 0"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"width": -2}, "width must be at least 1, got -2"),
        ({"width": 3, "num_heads": 3}, "width must be even, got 3"),
        ({"mlp_dim": 0}, "mlp_dim must be at least 1, got 0"),
    ],
)
def test_sequences_reject_fields_out_of_range(fields, message):
    with _rejects(message):
        modules.shapes(_sequences(**fields), SOURCE_BS, TARGET_BT)


@pytest.mark.parametrize("implementation", ["own", "xla"])
def test_there_is_something_to_attend_to(implementation):
    module = MultiHeadAttention(2, attention_implementation=implementation)
    message = (
        "memory_BSD (without one: query_BTD) must have at least 1 token, got shape"
    )
    for inputs in ((X_BTD, X_BTD[:, :0]), (X_BTD[:, :0],)):
        with _rejects(message):
            modules.shapes(module, *inputs)
    with _rejects("width must be at least 1, got 0"):
        modules.shapes(module, 2, 5, 0)
    for shape in ((2, 0, 4), (2, 3, 0)):
        query, key = jnp.ones((2, 3, shape[-1])), jnp.ones(shape)
        with _rejects(f"key must have S >= 1 and K >= 1, got shape {shape}"):
            dot_product_attention(query, key, key)


@pytest.mark.parametrize("lengths_B, wrong", [([0, 5], 5), ([-1, 4], -1)])
def test_padding_mask_knows_the_range_of_its_lengths(lengths_B, wrong):
    lengths_B = jnp.asarray(lengths_B)
    with _rejects(f"lengths_B must be in [0, 4], got {wrong}"):
        padding_mask(lengths_B, 4)
    # Under jit they count as the nearest number in range.
    mask_B11S = jax.jit(padding_mask, static_argnums=1)(lengths_B, 4)
    np.testing.assert_array_equal(mask_B11S, padding_mask(lengths_B.clip(0, 4), 4))


def test_padding_mask_has_keys_and_whole_lengths():
    with _rejects("num_keys must be at least 1, got 0"):
        padding_mask(jnp.zeros(2, int), 0)
    with pytest.raises(AssertionError, match="type"):
        padding_mask(jnp.ones(2), 4)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((0, 8), "num_positions must be at least 1, got 0"),
        ((-1, 8), "num_positions must be at least 1, got -1"),
        ((3, 0), "width must be at least 1, got 0"),
        ((3, -2), "width must be at least 1, got -2"),
    ],
)
def test_there_are_positions(arguments, message):
    with _rejects(message):
        sinusoidal_position(*arguments)


@pytest.mark.parametrize("where", ["source_BS", "target_BT"])
@pytest.mark.parametrize("vocab_size, token", [(8, -1), (8, 8), (1, -1), (1, 1)])
def test_tokens_lie_in_the_vocabulary(vocab_size, where, token):
    model = _sequences(vocab_size=vocab_size)
    variables = modules.variables(model, SOURCE_BS, TARGET_BT)
    zero = {"source_BS": 0 * SOURCE_BS, "target_BT": 0 * TARGET_BT}
    known = modules.apply(model, variables, *zero.values())
    wrong = zero | {where: zero[where].at[0, 1].set(token)}
    with _rejects(f"{where} must be in [0, {vocab_size - 1}], got {token}"):
        model.apply(variables, **wrong)
    # Under jit its sequence is NaN, and no other one.
    logits_BTV = modules.apply(model, variables, *wrong.values())
    np.testing.assert_allclose(logits_BTV[1], known[1], atol=1e-5)
    assert jnp.isnan(logits_BTV[0]).all()


@pytest.mark.parametrize("where", ["source_BS", "target_BT"])
def test_there_are_tokens(where):
    inputs = {"source_BS": SOURCE_BS, "target_BT": TARGET_BT}
    inputs |= {where: inputs[where][:, :0]}
    with _rejects(f"{where} must have at least 1 token a sequence, got shape (2, 0)"):
        _sequences().apply(_variables(), **inputs)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"start_token": 8}, "start_token must be in [0, 7], got 8"),
        ({"start_token": -1}, "start_token must be in [0, 7], got -1"),
        ({"start_token": jnp.int32(9)}, "start_token must be in [0, 7], got 9"),
        ({"num_tokens": 0}, "num_tokens must be at least 1, got 0"),
        ({"source_BS": -SOURCE_BS}, "source_BS must be in [0, 7], got -1"),
    ],
)
def test_greedy_decoding_rejects_values_out_of_range(fields, message):
    fields = {"start_token": 7, "num_tokens": 3, "source_BS": SOURCE_BS} | fields
    with _rejects(message):
        greedy_decode(_sequences(), _variables(), **fields)


def test_greedy_decoding_of_an_unknown_token_under_jit_yields_zeros():
    decode = jax.jit(
        lambda s: greedy_decode(
            _sequences(), _variables(), s, start_token=7, num_tokens=3
        )
    )
    np.testing.assert_array_equal(decode(SOURCE_BS.at[0].set(-1))[0], 0)


@pytest.mark.parametrize("memory", [True, False])
def test_decoding_ends_where_the_cache_does(memory):
    decoder = Decoder(depth=1, **_stack)
    args = (normal(2, 7, 16, seed=1),) if memory else ()
    variables = modules.variables(decoder, X_BTD, *args)

    def decode(cache, x_BTD):
        how = {"decode": True, "mutable": ["cache"]}
        return decoder.apply(variables | cache, x_BTD, *args, **how)

    fast_decode = jax.jit(decode)
    _, empty = fast_decode({}, X_BTD)
    message = "the cache of decode holds 5 tokens, those of its first call, got"
    with _rejects(f"{message} 6 more after 0"):
        decode(empty, normal(2, 6, 16))
    _, cache = fast_decode(empty, X_BTD[:, :4])
    with _rejects(f"{message} 2 more after 4"):
        decode(cache, X_BTD[:, :2])
    out_BTD, full = fast_decode(cache, X_BTD[:, 4:])
    assert jnp.isfinite(out_BTD).all()
    with _rejects(f"{message} 1 more after 5"):
        decode(full, X_BTD[:, :1])
    # Under jit all of it is NaN, from the call on that goes too far.
    for before, x_BTD in ((cache, X_BTD[:, :2]), (full, X_BTD[:, :1])):
        for _ in range(2):
            out_BTD, before = fast_decode(before, x_BTD)
            assert jnp.isnan(out_BTD).all()


def test_decode_next_ends_where_the_cache_does():
    model, variables = _sequences(), _variables()
    memory_BSD = modules.apply(model, variables, SOURCE_BS, method="encode")
    how = {"method": "init_cache", "mutable": ["cache"]}
    init_cache = jax.jit(functools.partial(model.apply, **how))
    _, cache = init_cache(variables, TARGET_BT, memory_BSD)

    def decode_next(cache, token_B):
        return model.apply(
            variables | cache,
            token_B,
            sinusoidal_position(1, 16),
            memory_BSD,
            method="decode_next",
            mutable=["cache"],
        )

    with _rejects("token_B must be in [0, 7], got 8"):
        decode_next(cache, jnp.asarray([1, 8]))
    for t in range(2):
        _, cache = decode_next(cache, TARGET_BT[:, t])
    with _rejects("the cache of decode holds 2 tokens, those of its first call"):
        decode_next(cache, TARGET_BT[:, 0])
    logits_BV, _ = jax.jit(decode_next)(cache, TARGET_BT[:, 0])
    assert jnp.isnan(logits_BV).all()


MAP_BTT = jnp.full((2, 5, 5), 0.2)


@pytest.mark.parametrize(
    "function, message",
    [
        (
            lambda: attention_rollout([]),
            "layers must hold the attention weights of at least 1 layer",
        ),
        *(
            (
                functools.partial(
                    mean_attention_distance,
                    MAP_BTT[:, None],
                    grid=grid,
                    has_class_token=True,
                ),
                f"grid must have at least 1 row and 1 column, got {grid[0]}x{grid[1]}",
            )
            for grid in ((0, 4), (4, 0), (-2, -2))
        ),
        (
            lambda: mean_attention_distance(
                MAP_BTT[:0, None], grid=(2, 2), has_class_token=True
            ),
            "weights_BNTT must be of at least 1 image, got shape (0, 1, 5, 5)",
        ),
        (
            lambda: patch_relevance(MAP_BTT[:, :1, :1], has_class_token=True),
            "map_BTT must have at least 1 patch, got shape (2, 1, 1)",
        ),
        (
            lambda: position_similarity(X_BTD[:1, :1], has_class_token=True),
            "position_1TD must have at least 1 patch, got shape (1, 1, 16)",
        ),
    ],
)
def test_there_is_something_to_interpret(function, message):
    with _rejects(message):
        function()
