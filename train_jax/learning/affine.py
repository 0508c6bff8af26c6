"""Random rotation, scaling, shearing and shift of images."""

import chex
import jax
import jax.numpy as jnp

Array = jax.Array


def random_affine(
    key: Array,
    image_BHWC: Array,
    *,
    rotation: float = 0.0,
    scaling: float = 0.0,
    shear: float = 0.0,
    shift: float = 0.0,
) -> Array:
    """Rotate, scale, shear and shift each image around its centre at random.

    Each amount is drawn uniformly from −most to most.

    Args:
        image_BHWC: uint8.
        rotation: most degrees.
        scaling: most change of the size, in [0, 1): 0.1 for factors from 0.9 to 1.1.
        shear: most degrees, left or right.
        shift: most shift along each axis, as a share of the image's side.

    Returns:
        image_BHWC: uint8, interpolated bilinearly; what comes from outside is black.
    """
    chex.assert_rank(image_BHWC, 4)
    if not (rotation or scaling or shear or shift):
        return image_BHWC
    batch, height, width, _ = image_BHWC.shape
    most = jnp.array([rotation, scaling, shear, shift, shift], jnp.float32)
    draws = jax.random.uniform(key, (batch, 5), minval=-1.0) * most[None]
    angle, scale, shear_angle, *shifts = draws.T
    angle, slope = jnp.deg2rad(angle), jnp.tan(jnp.deg2rad(shear_angle))
    sin, cos, scale = jnp.sin(angle), jnp.cos(angle), 1 + scale
    # Forward, a point (x, y) from the centre goes to scale · R · [[1, slope], [0, 1]].
    forward = jnp.stack([cos, cos * slope - sin, sin, sin * slope + cos], axis=-1)
    matrix_B22 = scale[:, None, None] * forward.reshape(batch, 2, 2)
    shift_B2 = jnp.stack(shifts, axis=-1) * jnp.array([width, height])[None]
    out = affine(image_BHWC, matrix_B22, shift_B2)
    chex.assert_equal_shape([out, image_BHWC])
    return out


def affine(image_BHWC: Array, matrix_B22: Array, shift_B2: Array) -> Array:
    """Map each image's points linearly around its centre, then shift them.

    Args:
        image_BHWC: uint8.
        matrix_B22: where a point (x, y) from the centre goes to, x to the right and y
            downwards.
        shift_B2: pixels to the right and downwards.

    Returns:
        image_BHWC: uint8, interpolated bilinearly; what comes from outside is black.
    """
    chex.assert_rank([image_BHWC, matrix_B22, shift_B2], [4, 3, 2])
    chex.assert_equal_shape_prefix([image_BHWC, matrix_B22, shift_B2], 1)
    chex.assert_type(image_BHWC, jnp.uint8)
    _, height, width, _ = image_BHWC.shape
    middle_x, middle_y = (width - 1) / 2, (height - 1) / 2
    y_HW, x_HW = jnp.meshgrid(
        jnp.arange(height) - middle_y, jnp.arange(width) - middle_x, indexing="ij"
    )

    def move(image_HWC: Array, matrix_22: Array, shift_2: Array) -> Array:
        (a, b), (c, d) = matrix_22
        dx_HW, dy_HW = x_HW - shift_2[0], y_HW - shift_2[1]
        # The inverse, written out: an accelerator rounds the factors of a product of
        # matrices.
        determinant = a * d - b * c
        places = [
            (a * dy_HW - c * dx_HW) / determinant + middle_y,
            (d * dx_HW - b * dy_HW) / determinant + middle_x,
        ]
        sample = jax.vmap(
            lambda image_HW: jax.scipy.ndimage.map_coordinates(
                image_HW, places, order=1, mode="constant"
            ),
            in_axes=-1,
            out_axes=-1,
        )
        return sample(image_HWC.astype(jnp.float32))

    moved = jax.vmap(move)(image_BHWC, matrix_B22, shift_B2)
    out = jnp.round(moved).astype(jnp.uint8)
    chex.assert_equal_shape([out, image_BHWC])
    return out
