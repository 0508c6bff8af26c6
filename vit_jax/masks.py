"""Masks of attention: boolean, True where a query may attend."""

import chex
import jax
import jax.numpy as jnp

from vit_jax.checks import check_at_least, check_range

Array = jax.Array


def causal_mask(num_queries: int, num_keys: int | None = None) -> Array:
    """Allow each query to attend to itself and to what comes before it.

    Returns:
        mask_TS: bool, True where key s ≤ query t. With more keys than queries the
        queries are the last ones, as in decoding with a cache.

    Raises:
        ValueError: if there is no query, or there are more of them than keys.
    """
    num_keys = num_queries if num_keys is None else num_keys
    if not 0 < num_queries <= num_keys:
        raise ValueError(
            f"num_queries must be in [1, num_keys={num_keys}], got {num_queries}"
        )
    return jnp.tri(num_queries, num_keys, k=num_keys - num_queries, dtype=bool)


def padding_mask(lengths_B: Array, num_keys: int) -> Array:
    """Hide the keys that lie beyond the end of each sequence.

    Args:
        lengths_B: number of real tokens in each sequence, in [0, num_keys]. Under jit a
            negative number stands for 0, and one above num_keys for num_keys.
        num_keys: length that the sequences are padded to.

    Returns:
        mask_B11S: bool; broadcasts over heads and queries.

    Raises:
        ValueError: if there is no key, or a length (outside jit) is out of range.
    """
    check_at_least(1, num_keys=num_keys)
    lengths_B = jnp.asarray(lengths_B)
    chex.assert_rank(lengths_B, 1)
    chex.assert_type(lengths_B, int)
    check_range("lengths_B", lengths_B, 0, num_keys)
    keys_S = jnp.arange(num_keys, dtype=jnp.int32)
    mask_BS = keys_S[None, :] < lengths_B.astype(jnp.int32)[:, None]
    return mask_BS[:, None, None, :]


def combine_masks(*masks: Array | None) -> Array | None:
    """Allow only what every mask allows.

    Args:
        *masks: bool, each (T, S) or (B, N, T, S), where B, N, T and S may be 1; None
            allows everything.

    Returns:
        The joint mask in the shape they broadcast to; None if all of them are None.
    """
    joint = None
    for mask in masks:
        if mask is None:
            continue
        chex.assert_type(mask, bool)
        chex.assert_rank(mask, {2, 4})
        if joint is not None and joint.ndim != mask.ndim:
            joint, mask = (m if m.ndim == 4 else m[None, None] for m in (joint, mask))
        joint = mask if joint is None else joint & mask
    return joint
