"""The Transformer from tokens to tokens: positions, shapes, decoding."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from tests import modules
from tests.modules import apply
from vit_jax import (
    Seq2SeqTransformer,
    greedy_decode,
    padding_mask,
    sinusoidal_position,
)

SOURCE_BS = jnp.asarray(np.random.default_rng(0).integers(0, 7, (3, 6)))
TARGET_BT = jnp.asarray(np.random.default_rng(1).integers(0, 7, (3, 5)))
START = 7


def _model(**fields) -> tuple[Seq2SeqTransformer, dict]:
    model = Seq2SeqTransformer(
        vocab_size=8,
        width=16,
        num_heads=4,
        mlp_dim=24,
        encoder_depth=1,
        decoder_depth=2,
        **fields,
    )
    return model, modules.variables(model, SOURCE_BS, TARGET_BT)


def test_position_is_the_paper_s():
    position_TD = sinusoidal_position(50, 8)
    assert position_TD.shape == (50, 8)
    for t, i in ((0, 0), (3, 1), (49, 3)):
        angle = t / 10000 ** (2 * i / 8)
        found = position_TD[t, 2 * i : 2 * i + 2]
        np.testing.assert_allclose(found, [np.sin(angle), np.cos(angle)], atol=1e-6)


def test_position_needs_an_even_width():
    with pytest.raises(ValueError, match="width must be even, got 7"):
        sinusoidal_position(3, 7)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_logits_see_the_whole_source_and_the_target_so_far(norm):
    model, variables = _model(norm=norm)
    logits_BTV = apply(model, variables, SOURCE_BS, TARGET_BT)
    assert logits_BTV.shape == (3, 5, 8) and logits_BTV.dtype == jnp.float32
    other = apply(model, variables, SOURCE_BS.at[:, 5].set(START), TARGET_BT)
    assert (other != logits_BTV).any(axis=(0, 2)).all()
    other = apply(model, variables, SOURCE_BS, TARGET_BT.at[:, 3].set(START))
    changed = (other != logits_BTV).any(axis=(0, 2))
    np.testing.assert_array_equal(changed, [False, False, False, True, True])


@pytest.mark.parametrize(
    "field", [{"remat": True}, {"attention_implementation": "xla"}], ids=str
)
def test_another_way_of_computing_gives_the_same(field, monkeypatch):
    model, variables = _model()

    def loss_and_grad(model):
        def loss(params):
            logits_BTV = model.apply({"params": params}, SOURCE_BS, TARGET_BT)
            return jnp.square(logits_BTV).mean()

        jaxpr = str(jax.make_jaxpr(jax.grad(loss))(variables["params"]))
        programs.append(jaxpr.count("remat"))
        return jax.jit(jax.value_and_grad(loss))(variables["params"])

    programs: list[int] = []
    calls, attend = [], jax.nn.dot_product_attention

    def counted(*args, **kwargs):
        calls.append(args)
        return attend(*args, **kwargs)

    monkeypatch.setattr(jax.nn, "dot_product_attention", counted)
    expected, got = loss_and_grad(model), loss_and_grad(model.clone(**field))
    assert (programs[1] > programs[0]) == ("remat" in field)
    assert bool(calls) == ("attention_implementation" in field)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), got, expected
    )


def test_the_function_that_multiplies_reaches_all_blocks():
    model, variables = _model()
    shapes = []

    def multiply(lhs, rhs, *args, **kwargs):
        shapes.append(rhs.shape)
        return jax.lax.dot_general(lhs, rhs, *args, **kwargs)

    multiplied = model.clone(dot_general=multiply)
    jax.eval_shape(multiplied.apply, variables, SOURCE_BS, TARGET_BT)
    hidden = variables["params"]["transformer"]["encoder"]["block_0"]["mlp"]["hidden"]
    assert shapes.count(hidden["kernel"].shape) == 3  # of one encoder and two decoders


def test_the_embedding_can_be_the_output_layer_s_kernel():
    model, variables = _model(logits_via_embedding=True)
    assert "head" not in variables["params"]
    plain = model.clone(logits_via_embedding=False)
    embedding_VD = variables["params"]["embedding"]["embedding"]
    head = {"kernel": embedding_VD.T, "bias": jnp.zeros(8)}
    with_head = {"params": variables["params"] | {"head": head}}
    np.testing.assert_allclose(
        apply(model, variables, SOURCE_BS, TARGET_BT),
        apply(plain, with_head, SOURCE_BS, TARGET_BT),
        atol=1e-5,
    )


def test_padding_of_the_source_is_hidden_by_its_mask():
    model, variables = _model()
    variables["params"]["embedding"]["embedding"] *= 4
    short_BS = SOURCE_BS[:, :4]
    padded_BS = jnp.pad(short_BS, [(0, 0), (0, 2)], constant_values=START)
    mask = padding_mask(jnp.full(3, 4), 6)
    logits_BTV = apply(model, variables, padded_BS, TARGET_BT, mask)
    expected_BTV = apply(model, variables, short_BS, TARGET_BT)
    np.testing.assert_allclose(logits_BTV, expected_BTV, rtol=1e-5, atol=1e-5)
    unmasked_BTV = apply(model, variables, padded_BS, TARGET_BT)
    assert jnp.abs(unmasked_BTV - expected_BTV).max() > 1e-2

    how = {"start_token": START, "num_tokens": 5}
    decoded_BT = greedy_decode(model, variables, padded_BS, mask, **how)
    expected_BT = greedy_decode(model, variables, short_BS, **how)
    np.testing.assert_array_equal(decoded_BT, expected_BT)
    unmasked_BT = greedy_decode(model, variables, padded_BS, **how)
    assert (unmasked_BT != expected_BT).any()


def test_a_mask_of_other_sources_is_refused():
    model, variables = _model()
    for mask in (padding_mask(jnp.full(3, 4), 5), jnp.ones((3, 1, 1, 6))):
        with pytest.raises(AssertionError):
            model.apply(variables, SOURCE_BS, TARGET_BT, mask)


def test_the_order_of_the_source_matters():
    model, variables = _model()
    logits_BTV = apply(model, variables, SOURCE_BS, TARGET_BT)
    other_BTV = apply(model, variables, SOURCE_BS[:, ::-1], TARGET_BT)
    assert jnp.abs(logits_BTV - other_BTV).max() > 1e-2


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_greedy_decoding_with_a_cache_equals_decoding_without(norm):
    model, variables = _model(norm=norm)
    # What the tokens say has to outweigh the biases, or all answers are alike.
    params = variables["params"]
    params["head"]["bias"] = jnp.zeros(8)
    params["embedding"]["embedding"] *= 4
    known_BT = jnp.full((3, 10), START)
    for t in range(9):  # what comes later does not matter, so one length does for all
        logits_BTV = apply(model, variables, SOURCE_BS, known_BT)
        known_BT = known_BT.at[:, t + 1].set(logits_BTV[:, t].argmax(axis=-1))
    decode = jax.jit(
        lambda v, s: greedy_decode(model, v, s, start_token=START, num_tokens=9)
    )
    decoded_BT = decode(variables, SOURCE_BS)
    np.testing.assert_array_equal(decoded_BT, known_BT[:, 1:])
    assert len(np.unique(decoded_BT)) > 1


def test_greedy_decoding_is_one_compiled_loop_over_single_tokens():
    model, variables = _model()

    def decode(num_tokens):
        program = jax.make_jaxpr(
            lambda s: greedy_decode(
                model, variables, s, start_token=START, num_tokens=num_tokens
            )
        )(SOURCE_BS)
        eqns = [e for e in program.jaxpr.eqns if e.params.get("name") == "_decode"]
        return eqns[0].params["jaxpr"].jaxpr

    programs = [decode(num_tokens) for num_tokens in (4, 40)]
    loops = [
        [eqn for eqn in program.eqns if eqn.primitive.name == "scan"]
        for program in programs
    ]
    assert [eqn.params["length"] for [eqn] in loops] == [4, 40]
    # No more work in the program for more tokens: the loop turns more often.
    sizes = [len(program.eqns) for program in programs]
    assert sizes[0] == sizes[1]


def test_tokens_may_be_small_integers():
    """The vocabulary's size may be beyond their type."""
    model = Seq2SeqTransformer(256, 4, 2, 8, encoder_depth=1, decoder_depth=1)
    variables = modules.variables(model, SOURCE_BS, TARGET_BT)
    small = [x.astype(jnp.uint8) for x in (SOURCE_BS, TARGET_BT)]
    np.testing.assert_array_equal(
        apply(model, variables, *small), apply(model, variables, SOURCE_BS, TARGET_BT)
    )


@pytest.mark.parametrize("method", ["encode", "decode_next"])
def test_greedy_decoding_is_compiled_once(monkeypatch, method):
    model, variables = _model()
    traced = []
    original = getattr(Seq2SeqTransformer, method)

    def count(self, *args, **kwargs):
        traced.append(args)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Seq2SeqTransformer, method, count)
    jax.clear_caches()
    greedy_decode(model, variables, SOURCE_BS, start_token=START, num_tokens=3)
    num_traced = len(traced)
    greedy_decode(model, variables, SOURCE_BS[:, ::-1], start_token=0, num_tokens=3)
    assert len(traced) == num_traced > 0


def test_each_device_decodes_its_part_of_the_batch():
    model, variables = _model()
    auto = {"axis_types": (AxisType.Auto,), "devices": jax.devices()[:3]}
    mesh = jax.make_mesh((3,), ("data",), **auto)
    whole, part = PartitionSpec(), PartitionSpec("data")

    def decode(variables, source_BS):
        tokens = {"start_token": START, "num_tokens": 4}
        return greedy_decode(model, variables, source_BS, **tokens)

    specs: Any = {"in_specs": (whole, part), "out_specs": part}
    found = jax.shard_map(decode, mesh=mesh, **specs)(variables, SOURCE_BS)
    np.testing.assert_array_equal(found, decode(variables, SOURCE_BS))


def test_only_the_shape_of_the_targets_matters_to_a_cache():
    model, variables = _model()
    memory_BSD = jnp.ones((3, 6, 16))
    for target_BT in (TARGET_BT, TARGET_BT - 99):
        arguments: Any = {"method": "init_cache", "mutable": ["cache"]}
        _, cache = model.apply(variables, target_BT, memory_BSD, **arguments)
        assert jax.tree.leaves(cache)
