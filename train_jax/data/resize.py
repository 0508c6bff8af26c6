"""Bring images of any size to the size of a model's input."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image

Resize = Literal["crop", "pad", "stretch"]
# A scaled picture is no longer than so many times the frame's longer side.
_LONGEST = 8
_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def resize_image(
    image_HWC: np.ndarray,
    size: tuple[int, int],
    *,
    how: Resize = "crop",
    crop_fraction: float = 1.0,
    resampling: str = "bilinear",
    background: int = 255,
) -> np.ndarray:
    """Bring an image to a size.

    Args:
        image_HWC: uint8, of 1 or 3 channels.
        size: height and width, pixels.
        how: "crop" fills the frame and cuts what is outside off, equally on both sides;
            "pad" puts all of the image into it, in the middle; "stretch" changes the
            proportions.
        crop_fraction: for "crop" and "stretch", the share that is kept of each side of
            the frame.
        resampling: "bilinear" or "bicubic", with antialiasing.
        background: for "pad", the grey level around the image.

    Returns:
        (height, width, C), uint8; an image of this size, as it is, if nothing is cut
        off.
    """
    height, width = size
    old_height, old_width, channels = image_HWC.shape
    if (old_height, old_width) == size and (how == "pad" or crop_fraction == 1):
        return image_HWC
    if how == "pad":
        scale = min(height / old_height, width / old_width)
        scaled = (max(round(old_height * scale), 1), max(round(old_width * scale), 1))
        canvas = np.full((height, width, channels), background, np.uint8)
        top, left = (height - scaled[0]) // 2, (width - scaled[1]) // 2
        canvas[top : top + scaled[0], left : left + scaled[1]] = _resize(
            image_HWC, scaled, resampling
        )
        return canvas
    # 1e-6: 224 / (224 / 248) may be a little less than 248.
    frame = [int(side / crop_fraction + 1e-6) for side in size]
    if how == "stretch":
        return _cut(_resize(image_HWC, frame, resampling), size)
    # Rounded down, as in torchvision.
    axis = int(height * old_width < width * old_height)
    new, old = frame[axis], image_HWC.shape[axis]
    most = max(_LONGEST * max(size) * old // new, old)
    if max(old_height, old_width) > most:
        # Most of what would be cut off is cut off before it is scaled.
        image_HWC = _cut(image_HWC, (min(old_height, most), min(old_width, most)))
    scaled = [side * new // old for side in image_HWC.shape[:2]]
    return _cut(_resize(image_HWC, scaled, resampling), size)


def _cut(image_HWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Cut the centre out, where torchvision does; the rest is let go."""
    (height, width), sides = size, image_HWC.shape
    top, left = round((sides[0] - height) / 2), round((sides[1] - width) / 2)
    return image_HWC[top : top + height, left : left + width].copy()


def _resize(image_HWC: np.ndarray, size: Sequence[int], resampling: str) -> np.ndarray:
    """Resize to a height and width."""
    image = Image.fromarray(image_HWC[..., 0] if image_HWC.shape[2] == 1 else image_HWC)
    resized = image.resize((size[1], size[0]), _FILTERS[resampling])
    return np.asarray(resized).reshape(*size, image_HWC.shape[2])


def change_channels(image_BHWC: np.ndarray, channels: int) -> np.ndarray:
    """Turn grey images into colours, or colours into grey by their luma (ITU-R 601)."""
    if image_BHWC.shape[-1] == channels:
        return image_BHWC
    if channels == 3:
        return np.repeat(image_BHWC, 3, axis=-1)
    luma = image_BHWC.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    return np.rint(luma)[..., None].astype(np.uint8)
