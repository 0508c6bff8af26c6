"""Draw images side by side with Matplotlib."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


def make_figure(width: float, height: float) -> Any:
    """Make a figure of a size in inches.

    Matplotlib is imported here: it takes a third of a second, and the first picture is
    drawn after the training.
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def draw_tiles(
    axis: Any,
    tiles: Iterable[np.ndarray],
    columns: int,
    titles: Sequence[str] = (),
    **style: Any,
) -> list[tuple[float, float, float, float]]:
    """Draw images of one size side by side, row by row.

    All in one axis: an axis for each would take far longer to make and to lay out.

    Returns:
        The extent of each image: left, right, bottom and top.
    """
    from matplotlib.patches import Rectangle

    axis.axis("off")
    num_lines = max((title.count("\n") + 1 for title in titles), default=0)
    above = 0.05 + 0.13 * num_lines
    extents = []
    for place, tile in enumerate(tiles):
        row, column = divmod(place, columns)
        height = tile.shape[0] / tile.shape[1]
        left, top = 1.08 * column, (height + above) * row
        extents.append((left, left + 1, top + height, top))
        show_image(axis, tile, extent=extents[-1], **style)
        frame = Rectangle((left, top), 1, height, fill=False, linewidth=0.5)
        axis.add_patch(frame)
    for title, (left, _, _, top) in zip(titles, extents, strict=False):
        where = {"ha": "center", "va": "bottom", "fontsize": 9}
        axis.text(left + 0.5, top - 0.03, escape_dollars(title), **where)
    if extents:
        axis.set_xlim(-0.02, 1.08 * columns)
        axis.set_ylim(extents[-1][2] + 0.02, -above)
    return extents


def show_image(axis: Any, image: np.ndarray, **style: Any) -> None:
    """Draw one image, (H, W, C) or (H, W), grey if it has one channel."""
    if image.ndim == 3 and image.shape[-1] == 1:
        image, style = image[..., 0], {"cmap": "gray", **style}
    axis.imshow(image, **style)


def escape_dollars(text: str) -> str:
    """Escape dollar signs, between which Matplotlib would read a formula."""
    return text.replace("$", r"\$")
