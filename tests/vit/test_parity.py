"""Attention, the Transformer and the ViT agree with PyTorch, gradients included."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import pytest

from tests import convert, parity
from vit_jax import (
    AttentionPool,
    ConvStem,
    DecoderBlock,
    EncoderBlock,
    MultiHeadAttention,
    SequencePool,
    Transformer,
    ViT,
    combine_masks,
    dot_product_attention,
)

OUTPUT_ATOL = 1e-5
GRADIENT_ATOL = 1e-4


@pytest.mark.parametrize("source, name, case", parity.sources(parity.ATTENTION))
def test_dot_product_attention_matches_torch(source, name, case):
    record = parity.read(source, name)
    mask = _mask(record)
    assert (mask is not None) == (case["mask"] is not None)

    def attend(query, key, value):
        return dot_product_attention(query, key, value, mask), None

    names = ("query", "key", "value")
    inputs = parity.part(record, "input")
    out, _, gradients = parity.value_and_gradients(
        attend, record, *(inputs[name] for name in names)
    )
    parity.assert_close(out, record["output/out"], atol=OUTPUT_ATOL)
    expected = parity.part(record, "grad_input")
    expected = tuple(expected[name] for name in names)
    parity.assert_close(gradients, expected, atol=GRADIENT_ATOL)


@pytest.mark.parametrize(
    "source, name, case", parity.sources(parity.MULTI_HEAD_ATTENTION)
)
def test_multi_head_attention_matches_torch(source, name, case):
    record = parity.read(source, name)
    mask = _mask(record)
    assert (mask is not None) == (case["mask"] is not None)
    module = MultiHeadAttention(num_heads=4)

    def attend(params, *tokens):
        out, captured = module.apply(
            {"params": params}, *tokens, mask=mask, mutable=["intermediates"]
        )
        return out, captured["intermediates"]["attention_weights"][0]

    weights = _check(attend, record, convert.multi_head_attention, "query", "memory")
    parity.assert_close(weights, record["output/weights"], atol=OUTPUT_ATOL)


@pytest.mark.parametrize("source, name, case", parity.sources(parity.ENCODER_BLOCK))
def test_encoder_block_matches_torch(source, name, case):
    record = parity.read(source, name)
    mask = _mask(record)
    assert (mask is not None) == (case["mask"] is not None)
    module = EncoderBlock(num_heads=4, mlp_dim=24, **_fields(case["norm"]))

    def encode(params, x_BTD):
        return module.apply({"params": params}, x_BTD, mask), None

    _check(encode, record, convert.encoder_block, "x")


@pytest.mark.parametrize("source, name, case", parity.sources(parity.DECODER_BLOCK))
def test_decoder_block_matches_torch(source, name, case):
    record = parity.read(source, name)
    masks = _masks(record, case["masks"])
    module = DecoderBlock(num_heads=2, mlp_dim=12, **_fields(case["norm"]))

    def decode(params, x_BTD, memory_BSD):
        masks_of_block = (masks["target"], masks["memory"])
        return module.apply(
            {"params": params}, x_BTD, memory_BSD, *masks_of_block
        ), None

    _check(decode, record, convert.decoder_block, "x", "memory")


@pytest.mark.parametrize("source, name, case", parity.sources(parity.TRANSFORMER))
def test_transformer_matches_torch(source, name, case):
    record = parity.read(source, name)
    masks = _masks(record, case["masks"])
    module = Transformer(
        num_heads=case["num_heads"],
        mlp_dim=case["mlp_dim"],
        encoder_depth=case["depth"],
        decoder_depth=case["depth"],
        causal=False,
        final_norm=True,
        **_fields(case["norm"]),
    )

    def transform(params, *tokens):
        out = module.apply(
            {"params": params},
            *tokens,
            *(masks[n] for n in ("source", "target", "memory")),
        )
        return out, None

    _check(transform, record, convert.transformer, "source", "target")


@pytest.mark.parametrize(
    "source, name, case", parity.sources(parity.VIT, parity.VIT_LIVE)
)
def test_vit_matches_torch(source, name, case):
    record = parity.read(source, name)
    fields = {key: value for key, value in case.items() if key != "image_shape"}
    module = ViT(**fields)

    def classify(params, image_BHWC):
        return module.apply({"params": params}, image_BHWC), None

    _check(classify, record, convert.vit, "image")


@pytest.mark.parametrize("source, name, case", parity.sources(parity.CONV_STEM))
def test_conv_stem_matches_torch(source, name, case):
    module = ConvStem(**case)

    def embed(params, image_BHWC):
        x_BTD = module.apply({"params": params}, image_BHWC)
        return x_BTD.reshape(1, 2, 3, -1), None

    _check(embed, parity.read(source, name), convert.conv_stem, "image")


@pytest.mark.parametrize("source, name, case", parity.sources(parity.POOL))
def test_pooling_matches_torch(source, name, case):
    module, convert_params = {
        "sequence": (SequencePool(), convert.sequence_pool),
        "map": (AttentionPool(num_heads=4, mlp_dim=24), convert.attention_pool),
    }[case["kind"]]

    def pool(params, x_BTD):
        return module.apply({"params": params}, x_BTD), None

    _check(pool, parity.read(source, name), convert_params, "x")


def _mask(record: parity.Record) -> Any:
    return jnp.asarray(record["input/mask"]) if "input/mask" in record else None


def _fields(norm: str) -> dict[str, Any]:
    """The ViT authors' fields for pre-norm, PyTorch's defaults for post-norm."""
    if norm == "pre":
        return {"norm": "pre", "activation": nn.gelu, "norm_epsilon": 1e-6}
    return {"norm": "post", "activation": nn.relu, "norm_epsilon": 1e-5}


def _masks(record: parity.Record, kinds: dict[str, str]) -> dict[str, Any]:
    """Read the recorded masks, those of padding joined to the others."""
    inputs = parity.part(record, "input")
    masks = {name: jnp.asarray(inputs[f"{name}_mask"]) for name in kinds}
    return {
        name: combine_masks(masks.get(name), masks.get(f"{name}_padding"))
        for name in ("source", "target", "memory")
    }


def _check(function, record: parity.Record, convert_params, *names: str) -> Any:
    """Compare output and every gradient of function(params, *inputs); return aux."""
    inputs = parity.part(record, "input")
    names = tuple(name for name in names if name in inputs)
    params = convert_params(parity.part(record, "state"))
    out, aux, (grad_params, *grad_inputs) = parity.value_and_gradients(
        function, record, params, *(inputs[name] for name in names)
    )
    parity.assert_close(out, record["output/out"], atol=OUTPUT_ATOL)
    expected = convert_params(parity.part(record, "grad"))
    parity.assert_close(grad_params, expected, atol=GRADIENT_ATOL)
    expected = [record[f"grad_input/{name}"] for name in names]
    parity.assert_close(grad_inputs, expected, atol=GRADIENT_ATOL)
    return aux
