"""Batch normalisation with a variance that is accurate far from zero."""

import math
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.dtypes import float32_or_wider

Array = jax.Array


def batch_statistics(x: Array, *, axis_name: str | None = None) -> tuple[Array, Array]:
    """Compute the mean and variance of each channel over all other axes.

    The variance is the mean of (x − mean)². E[x²] − E[x]², which Flax computes by
    default, cancels: in float32 no digit is right at x = 2000 ± 1.

    >>> mean_F, variance_F = batch_statistics(jnp.array([[1.0, 0.0], [3.0, 0.0]]))
    >>> mean_F, variance_F
    (Array([2., 0.], dtype=float32), Array([1., 0.], dtype=float32))

    Args:
        x: (..., F), at least one value a channel.
        axis_name: name of an axis of `jax.shard_map`, `jax.pmap` or `jax.vmap`, over
            which the statistics are computed as well; None for this shard alone.

    Returns:
        mean_F and variance_F, in float32 or wider.

    Raises:
        ValueError: if there is no value.
    """
    chex.assert_shape(x, (..., None))
    if math.prod(x.shape[:-1]) < 1:
        raise ValueError(f"x must have at least 1 value a channel, got shape {x.shape}")
    x = x.astype(float32_or_wider(x.dtype))
    axes = tuple(range(x.ndim - 1))
    mean = _mean_over(axis_name, x.mean(axis=axes, keepdims=True))
    variance_F = _mean_over(axis_name, jnp.square(x - mean).mean(axis=axes))
    mean_F = mean.reshape(x.shape[-1:])
    chex.assert_shape([mean_F, variance_F], x.shape[-1:])
    return mean_F, variance_F


def _mean_over(axis_name: str | None, x: Array) -> Array:
    """Average over a named axis, if there is one."""
    return x if axis_name is None else jax.lax.pmean(x, axis_name)


def batch_norm(
    x: Array,
    mean_F: Array,
    variance_F: Array,
    scale_F: Array,
    bias_F: Array,
    *,
    epsilon: float = 1e-5,
) -> Array:
    """Normalise each channel by its mean and variance, then scale and shift it.

    >>> one_F, zero_F = jnp.ones(2), jnp.zeros(2)
    >>> batch_norm(jnp.array([[3.0, 2.0]]), one_F, one_F, one_F, zero_F).round(2)
    Array([[2., 1.]], dtype=float32)

    Args:
        x: (..., F).
        epsilon: added to the variance.

    Returns:
        (x − mean) / √(variance + epsilon) · scale + bias, in float32 or wider.

    Raises:
        ValueError: if epsilon is not above 0.

    References: Batch Normalization, arXiv:1502.03167, algorithm 1.
    """
    chex.assert_shape(x, (..., None))
    chex.assert_shape([mean_F, variance_F, scale_F, bias_F], x.shape[-1:])
    if not epsilon > 0:
        raise ValueError(f"epsilon must be greater than 0, got {epsilon}")
    dtype = float32_or_wider(x.dtype)
    mean, variance, scale, bias = (
        jnp.expand_dims(p.astype(dtype), range(x.ndim - 1))
        for p in (mean_F, variance_F, scale_F, bias_F)
    )
    factor = jax.lax.rsqrt(variance + epsilon) * scale
    out = (x.astype(dtype) - mean) * factor + bias
    chex.assert_equal_shape([out, x])
    return out


def _normalize(
    x: Array, scale_F: Array, bias_F: Array, epsilon: float, axis_name: str | None
) -> tuple[Array, Array, Array]:
    """Normalise by the batch's own statistics: out, mean_F, variance_F."""
    statistics = batch_statistics(x, axis_name=axis_name)
    return batch_norm(x, *statistics, scale_F, bias_F, epsilon=epsilon), *statistics


_normalize_batch = jax.custom_jvp(_normalize, nondiff_argnums=(3, 4))


@_normalize_batch.defjvp
def _normalize_jvp(
    epsilon: float,
    axis_name: str | None,
    primals: tuple[Array, Array, Array],
    tangents: tuple[Array, Array, Array],
) -> tuple[Any, Any]:
    """Differentiate so that the gradient takes two sums over the batch.

    They are Σ dy and Σ dy (x − mean). JAX's own gradient takes a third one, for the
    mean, of an array that has to be written first. The variance's share in it is zero.
    """
    x, scale_F, _ = primals
    dx, dscale_F, dbias_F = tangents
    out, mean_F, variance_F = _normalize_batch(*primals, epsilon, axis_name)
    axes = tuple(range(x.ndim - 1))
    centred = x - jnp.expand_dims(mean_F, axes)
    dmean_F = _mean_over(axis_name, dx.mean(axis=axes))
    dvariance_F = 2 * _mean_over(axis_name, (centred * dx).mean(axis=axes))
    inverse_F = jax.lax.rsqrt(variance_F + epsilon)
    factor_F = inverse_F * scale_F
    dfactor_F = inverse_F * dscale_F - factor_F * inverse_F**2 / 2 * dvariance_F
    dshift_F = dbias_F - factor_F * dmean_F
    factor, dfactor, dshift = (
        jnp.expand_dims(p, axes) for p in (factor_F, dfactor_F, dshift_F)
    )
    dout = dx * factor + centred * dfactor + dshift
    return (out, mean_F, variance_F), (dout, dmean_F, dvariance_F)


class BatchNorm(nn.Module):
    """Normalise by the batch's statistics in training, by running averages otherwise.

    An empty batch leaves the running averages unchanged.

    >>> x_BHWC = jnp.ones((2, 4, 4, 3))
    >>> variables = BatchNorm().init(jax.random.key(0), x_BHWC)
    >>> BatchNorm().apply(variables, x_BHWC).shape
    (2, 4, 4, 3)

    Attributes:
        momentum: share of the old value in the running averages.
        epsilon: added to the variance.
        use_scale: whether each channel is multiplied by a parameter.
        scale_init: initialiser of that parameter.
        axis_name: see `batch_statistics`.
        dtype: dtype of the output; parameters and running averages stay float32, the
            statistics of a batch are computed in float32 or wider.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    use_scale: bool = True
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Normalise each channel of x (..., F).

        Args:
            x: floating point.
            train: whether to use the statistics of the batch and to update the running
                averages, for which `batch_stats` has to be mutable.

        Returns:
            An array of x's shape, in `dtype`.
        """
        chex.assert_shape(x, (..., None))
        if not 0 <= self.momentum <= 1:
            raise ValueError(f"momentum must be in [0, 1], got {self.momentum}")
        shape = x.shape[-1:]
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        variance = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        scale = jnp.ones(shape, jnp.float32)
        if self.use_scale:
            scale = self.param("scale", self.scale_init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        x = x.astype(float32_or_wider(self.dtype))
        if train and x.size:
            # There is no axis while the model is initialised.
            axis_name = None if self.is_initializing() else self.axis_name
            learned = scale.astype(x.dtype), bias.astype(x.dtype)
            out, *statistics = _normalize_batch(x, *learned, self.epsilon, axis_name)
            if not self.is_initializing():
                for running, new in zip((mean, variance), statistics, strict=True):
                    old = self.momentum * running.value
                    new = (1 - self.momentum) * new.astype(jnp.float32)
                    running.value = old + new
        else:
            statistics = (mean.value, variance.value)
            out = batch_norm(x, *statistics, scale, bias, epsilon=self.epsilon)
        chex.assert_equal_shape([out, x])
        return out.astype(self.dtype)
