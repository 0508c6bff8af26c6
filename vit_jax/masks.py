"""Attention masks: boolean, True where a query may attend to a key."""

import chex
import jax
import jax.numpy as jnp

from vit_jax.checks import check_at_least, check_range

Array = jax.Array


def causal_mask(num_queries: int, num_keys: int | None = None) -> Array:
    """Allow each query to attend to its own position and to earlier ones.

    >>> causal_mask(2, 3)
    Array([[ True,  True, False],
           [ True,  True,  True]], dtype=bool)

    Returns:
        mask_TS: bool. With more keys than queries the queries are the last positions,
        as in decoding with a cache; for `causal=True` of `MultiHeadAttention` they are
        the first.

    Raises:
        ValueError: if there is no query, or there are more queries than keys.
    """
    num_keys = num_queries if num_keys is None else num_keys
    if not 0 < num_queries <= num_keys:
        raise ValueError(
            f"num_queries must be in [1, num_keys={num_keys}], got {num_queries}"
        )
    mask_TS = jnp.tri(num_queries, num_keys, k=num_keys - num_queries, dtype=bool)
    chex.assert_shape(mask_TS, (num_queries, num_keys))
    return mask_TS


def padding_mask(lengths_B: Array, num_keys: int) -> Array:
    """Hide the keys beyond the end of each sequence.

    >>> padding_mask(jnp.array([1, 3]), 3)[:, 0, 0]
    Array([[ True, False, False],
           [ True,  True,  True]], dtype=bool)

    Args:
        lengths_B: number of real tokens in each sequence, in [0, num_keys]. Under jit a
            negative number counts as 0, and one above num_keys as num_keys.
        num_keys: length that the sequences are padded to.

    Returns:
        mask_B11S: bool; broadcasts over heads and queries.

    Raises:
        ValueError: if there is no key, or a length (outside jit) is out of range.
    """
    lengths_B = jnp.asarray(lengths_B)
    chex.assert_rank(lengths_B, 1)
    chex.assert_type(lengths_B, int)
    check_at_least(1, num_keys=num_keys)
    check_range("lengths_B", lengths_B, 0, num_keys)
    position_S = jnp.arange(num_keys, dtype=jnp.int32)
    mask_BS = position_S[None, :] < lengths_B.astype(jnp.int32)[:, None]
    chex.assert_shape(mask_BS, (lengths_B.shape[0], num_keys))
    return mask_BS[:, None, None, :]


def combine_masks(*masks: Array | None) -> Array | None:
    """Allow only what every mask allows.

    >>> combine_masks(causal_mask(3), padding_mask(jnp.array([1, 3]), 3)).shape
    (2, 1, 3, 3)

    Args:
        *masks: bool, each (T, S) or (B, N, T, S), where B, N, T and S may be 1; None
            allows everything.

    Returns:
        The joint mask in the shape they broadcast to; None if all of them are None.
    """
    given = [mask for mask in masks if mask is not None]
    chex.assert_rank(given, {2, 4})
    chex.assert_type(given, bool)
    if not given:
        return None
    rank = max(mask.ndim for mask in given)
    joint, *others = (m if m.ndim == rank else m[None, None] for m in given)
    for mask in others:
        joint = jnp.logical_and(joint, mask)
    chex.assert_rank(joint, rank)
    return joint
