"""Layer normalisation whose variance is right for tokens far from zero, too."""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.checks import check_positive
from vit_jax.dtypes import float32_or_wider

Array = jax.Array


def layer_norm(x: Array, scale: Array, bias: Array, *, epsilon: float = 1e-6) -> Array:
    """Normalise the last axis to mean 0 and variance 1, then scale and shift it.

    The variance is the mean square of what the mean leaves. E[x²] − E[x]², which Flax
    computes by default, cancels: in float32 nothing is right at x = 2000 ± 1.

    Args:
        x: (..., D).
        scale: (D,).
        bias: (D,).
        epsilon: added to the variance.

    Returns:
        An array like x, in float32 or wider.

    Raises:
        ValueError: if epsilon is not above 0.

    References: Layer Normalization, arXiv:1607.06450, eq. 4.
    """
    check_positive(epsilon=epsilon)
    chex.assert_shape([scale, bias], x.shape[-1:])
    dtype = float32_or_wider(x.dtype)
    x = x.astype(dtype)
    scale, bias = (
        jnp.expand_dims(p.astype(dtype), range(x.ndim - 1)) for p in (scale, bias)
    )
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    out = centred * (jax.lax.rsqrt(variance + epsilon) * scale) + bias
    chex.assert_equal_shape([out, x])
    return out


class LayerNorm(nn.Module):
    """`layer_norm` with a learned scale and bias.

    Attributes:
        epsilon: added to the variance.
        dtype: dtype of the output; parameters stay float32, statistics are computed in
            float32 or wider.
    """

    epsilon: float = 1e-6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalise the last axis."""
        shape = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        x = x.astype(float32_or_wider(self.dtype))
        return layer_norm(x, scale, bias, epsilon=self.epsilon).astype(self.dtype)
