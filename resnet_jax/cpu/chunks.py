"""Cut a batch into parts that fit into the cache of a CPU."""

import jax

Array = jax.Array


def cut(x_BHWC: Array, most: int) -> Array:
    """Cut a batch into equal chunks of at most `most` images, but of one at least.

    Returns:
        (chunks, images of a chunk, H, W, C).
    """
    batch = len(x_BHWC)
    sizes = range(1, min(batch, most) + 1)
    size = max((n for n in sizes if batch % n == 0), default=1)
    return x_BHWC.reshape(batch // size, size, *x_BHWC.shape[1:])
