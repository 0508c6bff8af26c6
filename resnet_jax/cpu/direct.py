"""A 3×3 convolution of few channels: XLA's, but for the kernel's gradient.

With few channels XLA's CPU backend convolves faster than Winograd's method, but takes
several times as long for the gradient of the kernel. That is the product of the image
and the output's gradient, summed over the pixels, for each shift of one against the
other. With the image at three shifts of its rows, and the output's gradient at three of
its columns, all nine are one matrix product.
"""

import math

import chex
import jax
import jax.numpy as jnp

from resnet_jax.cpu.chunks import cut

Array = jax.Array

_BORDER = ((1, 1), (1, 1))

# Pixels times channels of the images that are multiplied at a time: a few, which with
# their shifts fit into the cache of a core.
_CHUNK_SIZE = 2**18


def direct_conv3x3(x_BHWC: Array, kernel_33CF: Array) -> Array:
    """Convolve few channels with a 3×3 kernel, stride 1 and a border of one zero pixel.

    It supports reverse-mode differentiation, once (no jvp).

    >>> direct_conv3x3(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 5))).shape
    (1, 4, 4, 5)

    Args:
        x_BHWC: feature map.
        kernel_33CF: the kernel.

    Returns:
        y_BHWF.
    """
    chex.assert_rank([x_BHWC, kernel_33CF], 4)
    chex.assert_shape(kernel_33CF, (3, 3, x_BHWC.shape[-1], None))
    y_BHWF = _convolve(x_BHWC, kernel_33CF)
    chex.assert_shape(y_BHWF, (*x_BHWC.shape[:3], kernel_33CF.shape[-1]))
    return y_BHWF


@jax.custom_vjp
def _convolve(x_BHWC: Array, kernel_33CF: Array) -> Array:
    axes = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x_BHWC, kernel_33CF, (1, 1), _BORDER, dimension_numbers=axes
    )


def _forward(x_BHWC: Array, kernel_33CF: Array) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(x_BHWC, kernel_33CF), (x_BHWC, kernel_33CF)


def _backward(saved: tuple[Array, Array], dy_BHWF: Array) -> tuple[Array, Array]:
    x_BHWC, kernel_33CF = saved
    # The image's gradient is a convolution with the kernel turned by 180 degrees.
    turned_33FC = kernel_33CF[::-1, ::-1].swapaxes(2, 3)
    return _convolve(dy_BHWF, turned_33FC), _kernel_gradient(x_BHWC, dy_BHWF)


_convolve.defvjp(_forward, _backward)


def _kernel_gradient(x_BHWC: Array, dy_BHWF: Array) -> Array:
    """Compute Σ x[h + i - 1, w + j - 1] dy[h, w] for i, j of 0 to 2: (3, 3, C, F)."""
    _, height, width, channels = x_BHWC.shape
    features = dy_BHWF.shape[-1]
    most = _CHUNK_SIZE // max(1, height * width * max(channels, features))

    def add(total: Array, chunk: tuple[Array, Array]) -> tuple[Array, None]:
        x_BHWC, dy_BHWF = chunk
        rows = jnp.pad(x_BHWC, ((0, 0), (1, 1), (0, 0), (0, 0)))
        rows = [rows[:, i : i + height] for i in range(3)]
        columns = jnp.pad(dy_BHWF, ((0, 0), (0, 0), (1, 1), (0, 0)))
        columns = [columns[:, :, 2 - j : 2 - j + width] for j in range(3)]
        x, dy = (jnp.concatenate(parts, axis=-1) for parts in (rows, columns))
        num_pixels = math.prod(x.shape[:3])
        x, dy = (a.reshape(num_pixels, a.shape[-1]) for a in (x, dy))
        return total + x.T @ dy, None

    chunks = cut(x_BHWC, most), cut(dy_BHWF, most)
    zeros = jnp.zeros((3 * channels, 3 * features), x_BHWC.dtype)
    total, _ = jax.lax.scan(add, zeros, chunks)
    return total.reshape(3, channels, 3, features).transpose(0, 2, 1, 3)
