"""A batch of no examples goes through every model, forward and backward."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import modules
from vit_jax import (
    Decoder,
    Encoder,
    MultiHeadAttention,
    Seq2SeqTransformer,
    Transformer,
    ViT,
    causal_mask,
    dot_product_attention,
    greedy_decode,
    interpret,
    padding_mask,
    patchify,
)
from vit_jax.layers import dropout

IMAGE = jnp.ones((0, 8, 8, 3))
X = jnp.ones((0, 5, 16))
TOKENS = jnp.ones((0, 4), jnp.int32)

_vit = functools.partial(ViT, 3, patch_size=4, width=16, depth=2, num_heads=2)
_stack = {"num_heads": 2, "mlp_dim": 8}
_depths = {"encoder_depth": 1, "decoder_depth": 1}
_sequences = functools.partial(Seq2SeqTransformer, 8, 16, **_stack, **_depths)
MODELS = {
    "vit": (_vit(dropout_rate=0.1, attention_dropout_rate=0.1), (IMAGE,), (0, 3)),
    "vit_mean": (_vit(pool="mean", representation_size=4), (IMAGE,), (0, 3)),
    "vit_scan": (_vit(scan=True, remat=True), (IMAGE,), (0, 3)),
    "vit_fused": (_vit(attention_implementation="xla"), (IMAGE,), (0, 3)),
    "attention": (MultiHeadAttention(2), (X,), (0, 5, 16)),
    "cross_attention": (MultiHeadAttention(2), (X[:, :2], X), (0, 2, 16)),
    "fused_attention": (
        MultiHeadAttention(2, attention_implementation="xla"),
        (X,),
        (0, 5, 16),
    ),
    "encoder": (Encoder(depth=1, num_outputs=2, **_stack), (X,), (0, 2, 16)),
    "decoder": (Decoder(depth=1, **_stack), (X, X), (0, 5, 16)),
    "transformer": (Transformer(**_stack, **_depths), (X, X), (0, 5, 16)),
    "sequences": (_sequences(dropout_rate=0.1), (TOKENS, TOKENS), (0, 4, 8)),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_takes_an_empty_batch(name):
    model, inputs, shape = MODELS[name]
    variables = modules.variables(model, *inputs)
    ones = [jnp.ones((1, *x.shape[1:]), x.dtype) for x in inputs]
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(
        jnp.shape, modules.shapes(model, *ones)
    )
    assert modules.apply(model, variables, *inputs).shape == shape

    @jax.jit
    def gradient(params):
        rngs = {"dropout": jax.random.key(0)}
        return jax.grad(
            lambda p: model.apply({"params": p}, *inputs, train=True, rngs=rngs).sum()
        )(params)

    for leaf in jax.tree.leaves(gradient(variables["params"])):
        np.testing.assert_array_equal(leaf, 0)


def test_nothing_is_decoded_for_nobody():
    model = _sequences()
    variables = modules.variables(model, TOKENS, TOKENS)
    options = {"start_token": 1, "num_tokens": 3}
    assert greedy_decode(model, variables, TOKENS, **options).shape == (0, 3)

    decoder, how = Decoder(depth=1, **_stack), {"decode": True, "mutable": ["cache"]}
    variables = modules.variables(decoder, X)
    decode = jax.jit(functools.partial(decoder.apply, **how))
    _, cache = decode(variables, X)
    out_BTD, _ = decode(variables | cache, X[:, :1])
    assert out_BTD.shape == (0, 1, 16)


@pytest.mark.parametrize("shape", [(0,), (0, 5), (0, 5, 7), (2, 0, 3)])
def test_dropout_drops_nothing_of_nothing(shape):
    x = jnp.ones(shape)
    assert dropout(jax.random.key(0), x, rate=0.1).shape == shape


def test_functions_take_an_empty_batch():
    assert patchify(IMAGE, 4).shape == (0, 4, 48)
    assert padding_mask(jnp.ones(0, int), 4).shape == (0, 1, 1, 4)
    query = jnp.ones((0, 2, 5, 8))
    out, weights = dot_product_attention(
        query, query, query, causal_mask(5), return_weights=True
    )
    assert out.shape == query.shape and weights.shape == (0, 2, 5, 5)
    no_queries = dot_product_attention(query[..., :0, :], query, query)
    assert no_queries.shape == (0, 2, 0, 8)


@pytest.mark.parametrize("scan", [False, True])
def test_an_empty_batch_is_interpreted(scan):
    model = _vit(scan=scan)
    variables = modules.variables(model, IMAGE)
    layers = interpret.attention_weights(model, variables, IMAGE)
    assert [layer.shape for layer in layers] == [(0, 2, 5, 5)] * 2
    rollout_BTT = interpret.attention_rollout(layers)
    assert rollout_BTT.shape == (0, 5, 5)
    for has_class_token, num_patches in ((True, 4), (False, 5)):
        relevance_BT = interpret.patch_relevance(
            rollout_BTT, has_class_token=has_class_token
        )
        assert relevance_BT.shape == (0, num_patches)
