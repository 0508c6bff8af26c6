"""Greedy decoding with a sequence-to-sequence Transformer."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp

from vit_jax.checks import check_at_least, check_range
from vit_jax.position import sinusoidal_position
from vit_jax.seq2seq import Seq2SeqTransformer

Array = jax.Array


def greedy_decode(
    model: Seq2SeqTransformer,
    variables: Any,
    source_BS: Array,
    source_mask: Array | None = None,
    *,
    start_token: int,
    num_tokens: int,
) -> Array:
    """Decode by taking the most likely next token, one after another.

    One compiled loop, whose steps compute the newest token alone: the keys and values
    of earlier tokens are cached.

    >>> model = Seq2SeqTransformer(8, 4, 2, 8, encoder_depth=1, decoder_depth=1)
    >>> source_BS = jnp.array([[1, 2, 3]])
    >>> variables = model.init(jax.random.key(0), source_BS, source_BS)
    >>> greedy_decode(model, variables, source_BS, start_token=7, num_tokens=2).shape
    (1, 2)

    Args:
        variables: the model's variables.
        source_BS: token numbers in [0, V).
        source_mask: (B, 1, 1, S), True for real tokens, see `padding_mask`.
        start_token: first token of every target, in [0, V).
        num_tokens: number of tokens T to decode.

    Returns:
        target_BT: int32, without the start token. Where the logits are NaN, as for
        tokens out of range under jit, it is 0.

    Raises:
        ValueError: if a token (outside jit) is out of range, or T is below 1.
    """
    chex.assert_rank(source_BS, 2)
    chex.assert_type(source_BS, int)
    check_at_least(1, num_tokens=num_tokens)
    check_range("start_token", start_token, 0, model.vocab_size - 1)
    check_range("source_BS", source_BS, 0, model.vocab_size - 1)
    # Made of the source, it is divided among the devices as the source is.
    any_B1 = source_BS.sum(axis=1, keepdims=True)
    start_B1 = jnp.full_like(any_B1, start_token, dtype=jnp.int32)
    start_BT = jnp.broadcast_to(start_B1, (source_BS.shape[0], num_tokens))
    target_BT = _decode(model, variables, start_BT, source_BS, source_mask)
    chex.assert_shape(target_BT, start_BT.shape)
    return target_BT


@functools.partial(jax.jit, static_argnums=0)
def _decode(
    model: Seq2SeqTransformer,
    variables: Any,
    start_BT: Array,
    source_BS: Array,
    source_mask: Array | None,
) -> Array:
    """Decode as many tokens as there are start tokens, of which the first is used."""
    memory_BSD = model.apply(variables, source_BS, source_mask, method="encode")
    _, cache = model.apply(
        variables, start_BT, memory_BSD, method="init_cache", mutable=["cache"]
    )

    def decode_next(carry, position_D):
        cache, token_B = carry
        logits_BV, cache = model.apply(
            {**variables, **cache},
            token_B,
            position_D[None],
            memory_BSD,
            source_mask,
            method="decode_next",
            mutable=["cache"],
        )
        token_B = logits_BV.argmax(axis=-1).astype(jnp.int32)
        return (cache, token_B), token_B

    num_tokens = start_BT.shape[1]
    position_TD = sinusoidal_position(num_tokens, model.width, dtype=model.dtype)
    _, target_TB = jax.lax.scan(decode_next, (cache, start_BT[:, 0]), position_TD)
    return target_TB.T
