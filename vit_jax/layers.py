"""Layers of the Transformer: dense layer, dropout, layer normalisation."""

import functools
import math
from collections.abc import Callable
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.checks import check_positive, check_rate, check_rates, is_concrete
from vit_jax.dtypes import float32_or_wider

Array = jax.Array
# The signature of `jax.lax.dot_general`.
DotGeneral = Callable[..., Array]


def merged_dot_general(
    lhs: Array,
    rhs: Array,
    dimension_numbers,
    precision=None,
    *,
    dot_general: DotGeneral = jax.lax.dot_general,
    **kwargs,
) -> Array:
    """Multiply by a matrix, the other axes of the left-hand side merged into one.

    The result is that of `jax.lax.dot_general`. With merged axes XLA's CPU backend
    computes the gradient of the kernel as one (D, B·T) × (B·T, F) product; with the
    batch and token axes apart it takes a path that is more than twice as slow.

    >>> lhs, rhs = jnp.ones((2, 3, 4)), jnp.ones((4, 5))
    >>> merged_dot_general(lhs, rhs, (((2,), (0,)), ((), ()))).shape
    (2, 3, 5)

    Args:
        lhs: (..., D).
        rhs: kernel (D, F).
        dimension_numbers: must contract lhs's last axis with rhs's first.
        precision: as in `jax.lax.dot_general`, like all other arguments.
        dot_general: multiplies the matrices.

    Returns:
        (..., F).

    Raises:
        ValueError: for any other contraction.
    """
    chex.assert_shape(lhs, (..., None))
    chex.assert_shape(rhs, (lhs.shape[-1], None))
    contraction = (((lhs.ndim - 1,), (0,)), ((), ()))
    if dimension_numbers != contraction:
        raise ValueError(f"expected {contraction}, got {dimension_numbers}")
    merged = lhs.reshape(math.prod(lhs.shape[:-1]), lhs.shape[-1])
    numbers = (((1,), (0,)), ((), ()))
    if precision is not None:  # else `dot_general` may have one of its own
        kwargs["precision"] = precision
    out = dot_general(merged, rhs, numbers, **kwargs)
    chex.assert_shape(out, (merged.shape[0], rhs.shape[-1]))
    return out.reshape(*lhs.shape[:-1], rhs.shape[-1])


def make_dense(
    features: int, *, dot_general: DotGeneral = jax.lax.dot_general, **fields: Any
) -> nn.Dense:
    """Make a Dense layer with Xavier initialisation that merges all leading axes.

    >>> make_dense(5).init_with_output(jax.random.key(0), jnp.ones((2, 3, 4)))[0].shape
    (2, 3, 5)

    Args:
        features: number of outputs.
        dot_general: multiplies the matrices.
        **fields: of `nn.Dense`.
    """
    fields = {"kernel_init": nn.initializers.xavier_uniform()} | fields
    multiply: Any = functools.partial(merged_dot_general, dot_general=dot_general)
    return nn.Dense(features, dot_general=multiply, **fields)


def random_bytes(key: Array, shape: tuple[int, ...]) -> Array:
    """Draw uint8 numbers, four from each 32-bit random word.

    The numbers of an example, the first axis, do not depend on the number of examples.

    >>> random_bytes(jax.random.key(0), (2, 3)).shape
    (2, 3)

    Returns:
        uint8 of that shape, which has at least one axis.
    """
    chex.assert_rank(key, {0, 1})  # 1: the older kind of key, two numbers
    num_examples, size = shape[0], math.prod(shape[1:])
    num_words = -(-size // 4)
    words = jax.random.bits(key, (num_examples, num_words), jnp.uint32)
    numbers = jax.lax.bitcast_convert_type(words, jnp.uint8)
    chex.assert_shape(numbers, (num_examples, num_words, 4))
    return numbers.reshape(num_examples, 4 * num_words)[:, :size].reshape(shape)


def dropout_mask(key: Array, shape: tuple[int, ...], *, rate: float) -> Array:
    """Draw a dropout mask: each element is True with the probability 1 − `rate`.

    An element is dropped if its byte is below a threshold, which is 256 · `rate`
    rounded down in some examples, the first axis, and up in the others: one more draw
    for each example makes the mean of the thresholds exact.

    >>> dropout_mask(jax.random.key(0), (2, 3), rate=0.5).shape
    (2, 3)

    Returns:
        bool of that shape, which has at least one axis.
    """
    chex.assert_rank(key, {0, 1})  # 1: the older kind of key, two numbers
    # One call draws for examples and elements: two take longer to compile.
    drawn = random_bytes(key, (shape[0], 4 + math.prod(shape[1:])))
    word = jax.lax.bitcast_convert_type(drawn[:, :4], jnp.uint32)
    byte = drawn[:, 4:].reshape(shape)
    threshold = math.floor(256 * rate)
    raised = np.uint32(min(round((256 * rate - threshold) * 2**32), 2**32 - 1))
    is_raised = jnp.expand_dims(word < raised, range(1, len(shape)))
    # uint8 cannot hold a threshold of 256, so a raised threshold is an equality.
    is_kept = (byte > threshold) | ((byte == threshold) & ~is_raised)
    chex.assert_shape(is_kept, shape)
    return is_kept


def dropout(key: Array, x: Array, *, rate: float) -> Array:
    """Set each element to zero with a probability, and scale up the others.

    The others are divided by 1 − `rate`, so that the expectation is x. Drawing random
    bits is most of the work; 8 bits an element take a quarter of the time of 32.

    >>> dropout(jax.random.key(0), jnp.ones((1, 5)), rate=0.0)
    Array([[1., 1., 1., 1., 1.]], dtype=float32)

    Args:
        key: a random key.
        x: floating point, (B, ...); the examples lie along the first axis.
        rate: in [0, 1).

    Returns:
        An array like x.

    Raises:
        ValueError: if the rate is out of range.

    References: Srivastava et al., Dropout, JMLR 15 (2014).
    """
    chex.assert_rank(key, {0, 1})
    chex.assert_shape(x, (None, ...))
    chex.assert_type(x, float)
    check_rate("rate", rate)
    if rate == 0:
        return x
    is_kept = dropout_mask(key, x.shape, rate=rate)
    scaled = x.astype(float32_or_wider(x.dtype)) * (1 / (1 - rate))
    out = jnp.where(is_kept, scaled.astype(x.dtype), jnp.zeros((), x.dtype))
    chex.assert_equal_shape([out, x])
    return out


def stochastic_depth(key: Array, y_BTD: Array, rate: Array | float) -> Array:
    """Set a sublayer's output to zero in some examples, and scale up the others.

    With the residual that is added, the sublayer is left out in these examples.

    >>> stochastic_depth(jax.random.key(0), jnp.ones((1, 2, 1)), rate=0.0)[0, :, 0]
    Array([1., 1.], dtype=float32)

    Args:
        key: a random key.
        y_BTD: floating point.
        rate: share of the examples, in [0, 1), a scalar.

    Returns:
        out_BTD: in the dtype given; its expectation is y_BTD.

    Raises:
        ValueError: if a rate whose value is known is out of range.

    References: arXiv:1603.09382, eq. 2; drawn for each example and sublayer instead of
    for each batch and block, and scaled in training instead of in evaluation.
    """
    chex.assert_rank([key, y_BTD, rate], [{0, 1}, 3, 0])
    if is_concrete(rate):
        check_rate("rate", float(rate))
    dtype = float32_or_wider(y_BTD.dtype)
    share_kept = 1 - jnp.asarray(rate, dtype)
    is_kept = jax.random.bernoulli(key, share_kept, (y_BTD.shape[0], 1, 1))
    scaled = (y_BTD.astype(dtype) / share_kept).astype(y_BTD.dtype)
    out_BTD = jnp.where(is_kept, scaled, jnp.zeros((), y_BTD.dtype))
    chex.assert_shape(out_BTD, y_BTD.shape)
    return out_BTD


class Dropout(nn.Module):
    """Dropout with random numbers from the rng stream "dropout".

    >>> x = jnp.ones((1, 3))
    >>> Dropout(rate=0.5).apply({}, x, deterministic=True)
    Array([[1., 1., 1.]], dtype=float32)

    Attributes:
        rate: in [0, 1).
        deterministic: whether to return the input as it is; a field or an argument of
            the call.
    """

    rate: float
    deterministic: bool | None = None

    @nn.compact
    def __call__(self, x: Array, *, deterministic: bool | None = None) -> Array:
        """Drop elements of x, floating point (B, ...): an array like x."""
        chex.assert_shape(x, (None, ...))
        chex.assert_type(x, float)
        check_rates(self)
        deterministic = nn.merge_param(
            "deterministic", self.deterministic, deterministic
        )
        if deterministic or self.rate == 0:  # neither needs an rng
            return x
        out = dropout(self.make_rng("dropout"), x, rate=self.rate)
        chex.assert_equal_shape([out, x])
        return out


def layer_norm(x: Array, scale: Array, bias: Array, *, epsilon: float = 1e-6) -> Array:
    """Normalise the last axis to mean 0 and variance 1, then scale and shift it.

    The variance is the mean of (x − mean)². E[x²] − E[x]², which Flax computes by
    default, cancels: in float32 no digit is right at x = 2000 ± 1.

    >>> layer_norm(jnp.array([1.0, 3.0]), jnp.ones(2), jnp.zeros(2)).round(3)
    Array([-1.,  1.], dtype=float32)

    Args:
        x: (..., D).
        scale: (D,).
        bias: (D,).
        epsilon: added to the variance.

    Returns:
        An array of x's shape, in float32 or wider.

    Raises:
        ValueError: if epsilon is not above 0.

    References: Layer Normalization, arXiv:1607.06450, eq. 4.
    """
    chex.assert_shape(x, (..., None))
    chex.assert_shape([scale, bias], x.shape[-1:])
    check_positive(epsilon=epsilon)
    dtype, shape = float32_or_wider(x.dtype), x.shape
    x = x.astype(dtype)
    scale, bias = (
        jnp.expand_dims(p.astype(dtype), range(x.ndim - 1)) for p in (scale, bias)
    )
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    out = centred * (jax.lax.rsqrt(variance + epsilon) * scale) + bias
    chex.assert_shape(out, shape)
    return out


class LayerNorm(nn.Module):
    """Layer normalisation with a learned scale and bias.

    >>> x_BTD = jnp.ones((2, 3, 4))
    >>> LayerNorm().init_with_output(jax.random.key(0), x_BTD)[0].shape
    (2, 3, 4)

    Attributes:
        epsilon: added to the variance.
        dtype: dtype of the output; parameters stay float32, statistics are computed in
            float32 or wider.
    """

    epsilon: float = 1e-6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalise the last axis of (..., D): an array of x's shape, in `dtype`."""
        chex.assert_shape(x, (..., None))
        shape = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        x = x.astype(float32_or_wider(self.dtype))
        out = layer_norm(x, scale, bias, epsilon=self.epsilon)
        chex.assert_equal_shape([out, x])
        return out.astype(self.dtype)
