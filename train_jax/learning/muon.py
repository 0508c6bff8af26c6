"""Muon: momentum whose update is an orthogonal matrix, made of optax."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers

PyTree = Any


def muon(
    *,
    momentum: float = 0.95,
    nesterov: bool = True,
    ns_steps: int = 5,
    consistent_rms: float | None = 0.2,
    keep_norm: bool = False,
) -> optax.GradientTransformation:
    """Orthogonalise the momentum of each kernel; scale the rest as Adam does.

    A kernel of a convolution counts as a matrix of (height · width · C) rows.

    Args:
        momentum: decay rate of the accumulated gradient.
        nesterov: whether to use Nesterov momentum.
        ns_steps: number of Newton-Schulz iterations.
        consistent_rms: root mean square to which each kernel's update is scaled. With
            0.2 it is about that of Adam's updates, so that Adam's learning rates can be
            used; None for updates whose singular values are 1.
        keep_norm: whether each kernel is scaled to the norm √F before each step.

    References: Jordan et al., Muon, 2024 (kellerjordan.github.io/posts/muon);
    consistent_rms: arXiv:2502.16982, eq. 4.
    """
    del keep_norm  # Done by the function of that name, which has to come last.
    orthogonalize = optax.chain(
        optax.contrib.scale_by_muon(
            ns_steps=ns_steps,
            beta=momentum,
            nesterov=nesterov,
            weight_dimension_numbers=_dimension_numbers,
        ),
        _scale_by_shape(consistent_rms),
    )
    return optax.partition(
        {True: orthogonalize, False: optax.scale_by_adam()}, kernel_mask
    )


def kernel_mask(params: PyTree) -> PyTree:
    """Mark the kernels of dense layers and convolutions."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key == "kernel", params
    )


def _dimension_numbers(params: PyTree) -> PyTree:
    """Say which axes of each kernel are the rows and the columns of a matrix.

    The last axis is that of the columns. (L, D, F) are L matrices.
    """

    def of_kernel(kernel: jax.Array) -> MuonDimensionNumbers:
        rows = (1,) if kernel.ndim == 3 else tuple(range(kernel.ndim - 1))
        return MuonDimensionNumbers(rows, (kernel.ndim - 1,))

    return jax.tree.map(of_kernel, params)


def _scale_by_shape(consistent_rms: float | None) -> optax.GradientTransformation:
    """Give each orthogonal update of a kernel the same root mean square."""
    if consistent_rms is None:
        return optax.identity()

    def scale(update: jax.Array) -> jax.Array:
        rows = math.prod(update.shape[:-1]) // (len(update) if update.ndim == 3 else 1)
        return update * consistent_rms * max(rows, update.shape[-1]) ** 0.5

    return optax.stateless(lambda updates, _: jax.tree.map(scale, updates))


def keep_norm() -> optax.GradientTransformation:
    """Scale each kernel to the norm √F before it is updated, F its last axis.

    It comes last: what it adds to the update is not scaled by the learning rate. A
    kernel of zeros stays what it is. (L, D, F) are L kernels.

    References: arXiv:2404.00498 and its public repository, airbench94_muon.
    """

    def add_scaling(update: jax.Array, param: jax.Array) -> jax.Array:
        norm = jnp.linalg.norm(param.ravel())
        wanted = jnp.where(norm > 0, param.shape[-1] ** 0.5, norm)
        return update + param * (wanted / jnp.where(norm > 0, norm, 1) - 1)

    def update(updates: PyTree, params: PyTree) -> PyTree:
        def scale(path: Any, update: jax.Array, param: jax.Array) -> jax.Array:
            if path[-1].key != "kernel":
                return update
            add = jax.vmap(add_scaling) if param.ndim == 3 else add_scaling
            return add(update, param)

        return jax.tree_util.tree_map_with_path(scale, updates, params)

    return optax.stateless(update)
