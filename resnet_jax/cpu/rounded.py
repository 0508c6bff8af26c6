"""Products and 3×3 convolutions of numbers rounded to bfloat16.

A processor with AMX multiplies bfloat16 matrices about four times as fast as float32
ones. Then Winograd's transforms take longer than the multiplications they save, and
most of the time goes into moving pixels. To move few of them, an image is laid beside
itself at three shifts of its rows; one product with all nine parts of the kernel gives
three images, one for each column of the kernel, which are shifted and added.
"""

import chex
import jax
import jax.numpy as jnp

from resnet_jax.cpu.chunks import cut

Array = jax.Array

# Numbers in the larger factor of the products that are computed at a time.
_CHUNK_SIZE = 2**21


def rounded_product(x: Array, y: Array) -> Array:
    """Multiply matrices of float32, rounded to bfloat16; the sums are float32.

    For the gradients, which are products too, the result's gradient is rounded as well.
    Reverse-mode differentiation is supported, once (no jvp).

    >>> rounded_product(jnp.full((1, 1), 1.001), jnp.ones((1, 1)))
    Array([[1.]], dtype=float32)
    """
    chex.assert_rank([x, y], 2)
    chex.assert_type([x, y], jnp.float32)
    product = _product(x, y)
    chex.assert_shape(product, (len(x), y.shape[1]))
    return product


@jax.custom_vjp
def _product(x: Array, y: Array) -> Array:
    return _multiply(x.astype(jnp.bfloat16), y.astype(jnp.bfloat16))


def _product_forward(x: Array, y: Array) -> tuple[Array, tuple[Array, Array]]:
    x, y = x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)
    return _multiply(x, y), (x, y)


def _product_backward(saved: tuple[Array, Array], dz: Array) -> tuple[Array, Array]:
    x, y = saved
    dz = dz.astype(jnp.bfloat16)
    # Transposed in memory: XLA is slow at sums over the first axis of both factors.
    flat = jax.lax.optimization_barrier(x.T.reshape(-1))
    return _multiply(dz, y.T), _multiply(flat.reshape(x.shape[::-1]), dz)


_product.defvjp(_product_forward, _product_backward)


def rounded_conv3x3(x_BHWC: Array, kernel_33CF: Array) -> Array:
    """Convolve in bfloat16 with a 3×3 kernel, stride 1 and a border of one zero pixel.

    Image and kernel, and for the gradients the output's gradient, are rounded; sums are
    float32. It supports reverse-mode differentiation, once (no jvp).

    >>> rounded_conv3x3(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 5))).shape
    (1, 4, 4, 5)

    Args:
        x_BHWC: feature map, float32.
        kernel_33CF: the kernel, float32.

    Returns:
        y_BHWF, float32.
    """
    chex.assert_rank([x_BHWC, kernel_33CF], 4)
    chex.assert_shape(kernel_33CF, (3, 3, x_BHWC.shape[-1], None))
    chex.assert_type([x_BHWC, kernel_33CF], jnp.float32)
    y_BHWF = _convolve(x_BHWC, kernel_33CF)
    chex.assert_shape(y_BHWF, (*x_BHWC.shape[:3], kernel_33CF.shape[-1]))
    return y_BHWF


@jax.custom_vjp
def _convolve(x_BHWC: Array, kernel_33CF: Array) -> Array:
    matrix = _flatten(kernel_33CF)

    def convolve(x_BHWC: Array) -> Array:
        return _multiply_rows(_stack_rows(x_BHWC), matrix)

    y_BHWF = jax.lax.map(convolve, _cut(x_BHWC, kernel_33CF))
    return y_BHWF.reshape(*x_BHWC.shape[:3], kernel_33CF.shape[-1])


def _forward(x_BHWC: Array, kernel_33CF: Array) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(x_BHWC, kernel_33CF), (x_BHWC, kernel_33CF)


def _backward(saved: tuple[Array, Array], dy_BHWF: Array) -> tuple[Array, Array]:
    x_BHWC, kernel_33CF = saved
    channels, features = kernel_33CF.shape[2:]
    # The image's gradient is a convolution with the kernel turned by 180 degrees.
    turned = _flatten(kernel_33CF[::-1, ::-1].swapaxes(2, 3))

    def add(total: Array, chunk: tuple[Array, Array]) -> tuple[Array, Array]:
        x_BHWC, dy_BHWF = chunk
        rows = _stack_rows(dy_BHWF)
        product = _multiply(_stack_columns(x_BHWC), rows.reshape(-1, 3 * features))
        return total + product, _multiply_rows(rows, turned)

    zeros = jnp.zeros((3 * channels, 3 * features), jnp.float32)
    chunks = _cut(x_BHWC, kernel_33CF), _cut(dy_BHWF, kernel_33CF)
    total, dx_BHWC = jax.lax.scan(add, zeros, chunks)
    # A column of the kernel multiplies a shift of the image, a row one of the gradient,
    # in the opposite direction.
    total = total.reshape(3, channels, 3, features)[:, :, ::-1]
    return dx_BHWC.reshape(x_BHWC.shape), total.transpose(2, 0, 1, 3)


_convolve.defvjp(_forward, _backward)


def _cut(x_BHWX: Array, kernel_33CF: Array) -> Array:
    """Cut a batch into chunks: of the kernel's inputs, or of its outputs."""
    _, height, width, _ = x_BHWX.shape
    widest = 3 * max(kernel_33CF.shape[2:])
    return cut(x_BHWX, _CHUNK_SIZE // max(1, height * (width + 2) * widest))


def _stack_rows(x_BHWC: Array) -> Array:
    """Lay each pixel's upper and lower neighbours beside it: (B, H, W + 2, 3 · C).

    There is a column of zeros on each side.
    """
    bits = _to_bits(x_BHWC)
    rows = [_pad(bits, (0, 0), (1 - i, i - 1), (1, 1), (0, 0)) for i in range(3)]
    return _from_bits(jnp.concatenate(rows, axis=-1))


def _stack_columns(x_BHWC: Array) -> Array:
    """Transpose, with each pixel's left and right neighbours: (3 · C, B · H · (W + 2)).

    Next to the columns of zeros, neighbours are those of another row.
    """
    channels = x_BHWC.shape[-1]
    x = jnp.pad(x_BHWC.astype(jnp.bfloat16), ((0, 0), (0, 0), (1, 1), (0, 0)))
    # By a product with the identity matrix, which is exact: XLA transposes slowly.
    identity = jnp.eye(channels, dtype=jnp.bfloat16)
    transposed = jnp.einsum(
        "dc,pc->dp",
        identity,
        x.reshape(-1, channels),
        preferred_element_type=jnp.float32,
    )
    bits = jax.lax.optimization_barrier(_to_bits(transposed))
    columns = [_pad(bits, (0, 0), (1 - j, j - 1)) for j in range(3)]
    return _from_bits(jnp.concatenate(columns))


def _flatten(kernel_33CF: Array) -> Array:
    """Lay the columns of the kernel side by side: (3 · C, 3 · F)."""
    channels, features = kernel_33CF.shape[2:]
    matrix = kernel_33CF.swapaxes(1, 2).reshape(3 * channels, 3 * features)
    return matrix.astype(jnp.bfloat16)


def _multiply_rows(rows: Array, matrix: Array) -> Array:
    """Convolve stacked rows with a flattened kernel: (B, H, W, F)."""
    *shape, width, _ = rows.shape
    product = _multiply(rows.reshape(-1, len(matrix)), matrix)
    parts = product.reshape(*shape, width, 3, -1)
    left, middle, right = (parts[:, :, j : j + width - 2, j] for j in range(3))
    return left + middle + right


def _multiply(x: Array, y: Array) -> Array:
    return jnp.matmul(x, y, preferred_element_type=jnp.float32)


def _pad(bits: Array, *sides: tuple[int, int]) -> Array:
    """Pad with zeros as `jnp.pad` does; a negative number cuts off."""
    return jax.lax.pad(bits, jnp.zeros((), bits.dtype), [(*side, 0) for side in sides])


def _to_bits(x: Array) -> Array:
    """Round to bfloat16, as integers: XLA moves bfloat16 as float32, and converts."""
    return jax.lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16)


def _from_bits(bits: Array) -> Array:
    return jax.lax.bitcast_convert_type(bits, jnp.bfloat16)
