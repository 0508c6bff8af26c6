"""The position embedding on another grid: as timm and the authors resize it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from vit_jax.weights import resize_position_embedding

# Of the pairs of grids, from small to large and back, one not square.
GRIDS = [((4, 4), (7, 7)), ((7, 7), (4, 4)), ((4, 6), (5, 3)), ((14, 14), (24, 24))]


def draw(grid, num_others=1, width=5):
    rng = np.random.default_rng(0)
    return rng.normal(size=(1, num_others + grid[0] * grid[1], width)).astype("f4")


@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_bilinear_is_the_authors_zoom(old, new):
    position_1TD = draw(old)
    out = resize_position_embedding(position_1TD, old, new, method="bilinear")
    zoom = (new[0] / old[0], new[1] / old[1], 1)
    grid = position_1TD[0, 1:].reshape(*old, -1)
    expected = scipy.ndimage.zoom(grid, zoom, order=1).reshape(1, -1, 5)
    np.testing.assert_allclose(out[:, 1:], expected, atol=1e-5)
    np.testing.assert_array_equal(out[:, 0], position_1TD[:, 0])


@pytest.mark.parity
@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_bicubic_is_timm_s(old, new):
    torch = pytest.importorskip("torch")
    position_1TD = draw(old, num_others=0)
    grid = torch.as_tensor(position_1TD).reshape(1, *old, 5).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(
        grid, size=new, mode="bicubic", antialias=True
    )
    expected = expected.permute(0, 2, 3, 1).reshape(1, -1, 5).numpy()
    out = resize_position_embedding(position_1TD, old, new)
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_the_same_grid_changes_nothing():
    position_1TD = draw((4, 6))
    for method in ("bicubic", "bilinear"):
        out = resize_position_embedding(position_1TD, (4, 6), (4, 6), method=method)
        np.testing.assert_allclose(out, position_1TD, atol=1e-6)


def test_wrong_values():
    with pytest.raises(ValueError, match="must have 16 positions or more"):
        resize_position_embedding(np.ones((1, 9, 2)), (4, 4), (2, 2))
    with pytest.raises(ValueError, match="method must be 'bicubic' or 'bilinear'"):
        resize_position_embedding(np.ones((1, 4, 2)), (2, 2), (3, 3), method="area")


@pytest.mark.parametrize("method", ["bicubic", "bilinear"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_dtype_is_kept(method, dtype):
    position_1TD = jnp.asarray(draw((2, 3)), dtype)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        out = resize_position_embedding(position_1TD, (2, 3), (4, 5), method=method)
    assert out.dtype == dtype
