"""Convolutions as matrix products equal those of XLA, gradients included."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import ResNet
from resnet_jax.cpu import convolution
from resnet_jax.cpu.convolution import conv_general_dilated
from resnet_jax.cpu.direct import direct_conv3x3
from resnet_jax.cpu.rounded import rounded_conv3x3
from resnet_jax.cpu.winograd import conv3x3
from tests import modules
from tests.modules import normal

LAYOUT = ("NHWC", "HWIO", "NHWC")
TOLERANCE = 3e-5  # of the largest value


def _draw(*shape: int) -> jax.Array:
    return normal(*shape, seed=sum(shape))


def _assert_close(tree, expected, tolerance=TOLERANCE) -> None:
    def check(value, wanted):
        atol = tolerance * np.abs(np.asarray(wanted)).max()
        np.testing.assert_allclose(value, wanted, rtol=0, atol=atol)

    chex.assert_trees_all_equal_shapes(tree, expected)
    jax.tree.map(check, tree, expected)


def _xla(**options):
    """XLA's convolution, of this layout."""
    convolve = jax.lax.conv_general_dilated
    return functools.partial(convolve, dimension_numbers=LAYOUT, **options)


def _compute(functions, image, kernel):
    """Call each function, all in one program."""
    return jax.jit(lambda *x: [function(*x) for function in functions])(image, kernel)


def _assert_same_gradients(convolve, xla, image, kernel) -> None:
    """Compare values and gradients with those of XLA."""
    cotangent = _draw(*jax.eval_shape(xla, image, kernel).shape)

    @jax.jit
    def compute(image, kernel, cotangent):
        results = []
        for function in (convolve, xla):
            out, pull = jax.vjp(function, image, kernel)
            results.append((out, pull(cotangent)))
        return results

    _assert_close(*compute(image, kernel, cotangent))


# Kernels, strides and borders of all ResNets; more and fewer channels and pixels than
# Winograd's transforms pay for.
@pytest.mark.parametrize("height, width", [(8, 8), (7, 10), (1, 3)])
@pytest.mark.parametrize(
    "channels, side, stride",
    [(110, 3, 1), (16, 3, 1), (3, 3, 1), (3, 3, 2), (3, 1, 1), (3, 1, 2), (3, 7, 2)],
)
def test_equals_xla(height, width, channels, side, stride):
    image, kernel = _draw(8, height, width, channels), _draw(side, side, channels, 20)
    border = [((side - 1) // 2,) * 2] * 2
    options = {"window_strides": (stride, stride), "padding": border}
    ours = functools.partial(conv_general_dilated, **options)
    _assert_same_gradients(ours, _xla(**options), image, kernel)


# Sizes that tiles of 4 pixels cover, and that they do not.
@pytest.mark.parametrize("height, width", [(8, 8), (7, 10), (4, 16), (1, 3)])
@pytest.mark.parametrize("channels", [1, 33])
@pytest.mark.parametrize("convolve", [conv3x3, direct_conv3x3])
def test_each_way_equals_xla(convolve, height, width, channels):
    image, kernel = _draw(5, height, width, channels), _draw(3, 3, channels, 20)
    xla = _xla(window_strides=(1, 1), padding=[(1, 1)] * 2)
    _assert_same_gradients(convolve, xla, image, kernel)


def test_the_output_gradient_is_not_transposed():
    """XLA would compute it column by column, which is slow."""
    image, kernel = _draw(4, 8, 8, 3), _draw(3, 3, 3, 20)
    options = {"window_strides": (1, 1), "padding": [(1, 1)] * 2}

    def total(kernel, image):
        return jnp.square(conv_general_dilated(image, kernel, **options)).sum()

    program = jax.jit(jax.grad(total)).lower(kernel, image).compile().as_text()
    assert "f32[256,20]" in program
    assert "f32[20,256]" not in program


def _rounded(x):
    """The nearest bfloat16 numbers, as float32."""
    return x.astype(jnp.bfloat16).astype(jnp.float32)


# The last of these batches takes several chunks.
@pytest.mark.parametrize(
    "shape", [(5, 8, 8, 1), (3, 7, 10, 33), (2, 1, 3, 4), (14, 64, 64, 16)]
)
def test_rounded_factors_are_multiplied_exactly(shape):
    options = {"window_strides": (1, 1), "padding": [(1, 1)] * 2}
    _assert_rounded(rounded_conv3x3, options, shape, side=3)


@pytest.mark.parametrize("side, stride", [(3, 1), (3, 2), (1, 1), (1, 2)])
def test_strided_convolutions_are_rounded_likewise(side, stride):
    border = [((side - 1) // 2,) * 2] * 2
    options = {"window_strides": (stride, stride), "padding": border}
    ours = functools.partial(conv_general_dilated, **options, rounds_to_bfloat16=True)
    _assert_rounded(ours, options, (4, 7, 10, 64), side)


def test_an_image_of_few_channels_is_not_rounded():
    image, kernel = _draw(4, 8, 8, 3), _draw(3, 3, 3, 64)
    options = {"window_strides": (1, 1), "padding": [(1, 1)] * 2}
    ours = functools.partial(conv_general_dilated, **options, rounds_to_bfloat16=True)
    _assert_same_gradients(ours, _xla(**options), image, kernel)


def _assert_rounded(convolve, options, shape, side) -> None:
    """Compare values and gradients with those of XLA, of rounded factors."""
    image, kernel = _draw(*shape), _draw(side, side, shape[-1], 20)
    xla = _xla(**options)
    cotangent = _draw(*jax.eval_shape(xla, image, kernel).shape)

    @jax.jit
    def compute(image, kernel, cotangent):
        out, pull = jax.vjp(convolve, image, kernel)
        expected, pull_xla = jax.vjp(xla, _rounded(image), _rounded(kernel))
        expected = expected, pull_xla(_rounded(cotangent))
        return (out, pull(cotangent)), expected, xla(image, kernel)

    ours, expected, exact = compute(image, kernel, cotangent)
    _assert_close(ours, expected)
    # Image and kernel have been rounded, each by up to half a unit in the last place.
    assert 0 < jnp.abs(ours[0] - exact).max() < 2**-7 * jnp.abs(exact).max()


@pytest.mark.parametrize("rounds", [False, True])
@pytest.mark.parametrize(
    "shape, expected",
    [
        ((16, 4, 4, 64), ("winograd", "rounded")),
        ((15, 4, 4, 64), ("windows", "rounded windows")),
        ((16, 4, 4, 63), ("direct", "rounded")),
        ((1, 4, 4, 15), ("direct", "direct")),
        ((1, 4, 4, 4), ("direct", "direct")),
        ((16, 4, 4, 3), ("windows", "windows")),
    ],
)
def test_the_fastest_way_is_chosen(monkeypatch, shape, expected, rounds):
    ways = {"conv3x3": "winograd", "direct_conv3x3": "direct"}
    ways |= {"rounded_conv3x3": "rounded", "multiply_windows": "windows"}

    def way_of(name):
        def choose(image, kernel, *_, rounds=False):
            chosen.append("rounded " * rounds + ways[name])
            return image @ kernel[0, 0]

        return choose

    for name in ways:
        monkeypatch.setattr(convolution, name, way_of(name))
    chosen = []
    image, kernel = jnp.zeros(shape), jnp.zeros((3, 3, shape[-1], 64))
    convolve = functools.partial(conv_general_dilated, rounds_to_bfloat16=rounds)
    convolve(image, kernel, (1, 1), [(1, 1)] * 2)
    assert chosen == [expected[rounds]]


# Each of these batches takes several chunks.
@pytest.mark.parametrize(
    "convolve, shape", [(conv3x3, (14, 64, 64, 32)), (direct_conv3x3, (9, 64, 64, 16))]
)
def test_chunks_make_no_difference(convolve, shape):
    image, kernel = _draw(*shape), _draw(3, 3, shape[-1], 16)
    xla = _xla(window_strides=(1, 1), padding=[(1, 1)] * 2)
    _assert_same_gradients(convolve, xla, image, kernel)


@pytest.mark.parametrize("side", [3, 1])
def test_bfloat16_is_rounded_once_at_the_end(side):
    image, kernel = _draw(4, 8, 8, 32), _draw(side, side, 32, 16)
    image, kernel = image.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    options = {"window_strides": (1, 1), "padding": [(side // 2,) * 2] * 2}
    out = jax.jit(functools.partial(conv_general_dilated, **options))(image, kernel)
    assert out.dtype == jnp.bfloat16
    image, kernel = image.astype(jnp.float32), kernel.astype(jnp.float32)
    exact = np.asarray(_xla(**options)(image, kernel))
    # Half a unit in the last place, and Winograd's own error.
    np.testing.assert_allclose(
        out.astype(jnp.float32),
        exact,
        rtol=2**-8,
        atol=TOLERANCE * np.abs(exact).max(),
    )


@pytest.mark.parametrize("rounds", [False, True])
@pytest.mark.parametrize("side", [3, 1])
def test_float64_is_computed_in_float64(side, rounds):
    with jax.enable_x64(True):
        image, kernel = (
            _draw(*shape).astype(jnp.float64)
            for shape in ((4, 8, 8, 32), (side, side, 32, 64))
        )
        options = {"window_strides": (1, 1), "padding": [(side // 2,) * 2] * 2}
        ours = functools.partial(
            conv_general_dilated, **options, rounds_to_bfloat16=rounds
        )
        out, expected = _compute((ours, _xla(**options)), image, kernel)
        assert out.dtype == jnp.float64
        np.testing.assert_allclose(out, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("convolve", [conv3x3, direct_conv3x3, rounded_conv3x3])
def test_vmap_over_kernels(convolve):
    images, kernels = _draw(2, 4, 8, 8, 32), _draw(2, 3, 3, 32, 16)

    def one_by_one(images, kernels):
        return jnp.stack([convolve(images[i], kernels[i]) for i in range(2)])

    _assert_close(*_compute((jax.vmap(convolve), one_by_one), images, kernels))


def test_other_convolutions_are_refused():
    image, kernel = _draw(1, 8, 8, 16), _draw(3, 3, 16, 16)
    border = [(1, 1), (1, 1)]
    for options in (
        {"padding": border, "rhs_dilation": (2, 2)},
        {"padding": border, "lhs_dilation": (2, 1)},
        {"padding": border, "feature_group_count": 2},
        {"padding": border, "precision": "highest"},
        {"padding": border, "dimension_numbers": ("NCHW", "OIHW", "NCHW")},
    ):
        with pytest.raises(ValueError, match="expected"):
            conv_general_dilated(image, kernel, (1, 1), **options)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("stride", [1, 2])
def test_padding_by_name(padding, stride):
    """As `flax.linen.Conv` has it by default."""
    image, kernel = _draw(2, 7, 8, 16), _draw(3, 3, 16, 16)
    options = {"window_strides": (stride, stride), "padding": padding}
    ours = functools.partial(conv_general_dilated, **options)
    _assert_close(*_compute((ours, _xla(**options)), image, kernel))


def test_resnet_with_either_convolution():
    image = _draw(4, 16, 16, 3)
    plain = ResNet(10, stage_sizes=(2, 1, 1), width=16)
    fast = plain.clone(conv_general_dilated=conv_general_dilated)
    variables = modules.variables(plain, image)
    chex.assert_trees_all_equal_shapes(variables, modules.shapes(fast, image))

    def loss(params, model):
        logits, updates = model.apply(
            variables | {"params": params}, image, train=True, mutable=["batch_stats"]
        )
        return (logits * _draw(4, 10)).sum(), (logits, updates)

    gradient = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
    ours, expected = (gradient(variables["params"], model) for model in (fast, plain))

    def check(value, wanted):
        atol = 2e-4 * max(1.0, np.abs(np.asarray(wanted)).max())
        np.testing.assert_allclose(value, wanted, rtol=0, atol=atol)

    jax.tree.map(check, ours, expected)
