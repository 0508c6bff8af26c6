"""Bring images of any size to the size of a model's input."""

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
    """Bring an image to a size; one that has it is returned as it is.

    Args:
        image_HWC: uint8, of 1 or 3 channels.
        size: height and width, pixels.
        how: "crop" fills the frame and cuts what is outside off, equally on both sides;
            "pad" puts all of the image into it, in the middle; "stretch" changes the
            proportions.
        crop_fraction: for "crop", the share of the shorter side that is kept.
        resampling: "bilinear" or "bicubic", with antialiasing.
        background: for "pad", the grey level around the image.

    Returns:
        (height, width, C), uint8.
    """
    height, width = size
    old_height, old_width, channels = image_HWC.shape
    if (old_height, old_width) == size:
        return image_HWC
    ratios = (height / old_height, width / old_width)
    if how == "stretch":
        return _resize(image_HWC, (height, width), resampling)
    scale = min(ratios) if how == "pad" else max(ratios) / crop_fraction
    scaled = (max(round(old_height * scale), 1), max(round(old_width * scale), 1))
    most = max(int(_LONGEST * max(size) / scale), 1)
    if how == "crop" and max(old_height, old_width) > most:
        # Most of what would be cut off is cut off before it is scaled.
        image_HWC = _cut(image_HWC, min(old_height, most), min(old_width, most))
        return resize_image(
            image_HWC, size, crop_fraction=crop_fraction, resampling=resampling
        )
    image_HWC = _resize(image_HWC, scaled, resampling)
    if how == "pad":
        canvas = np.full((height, width, channels), background, np.uint8)
        top, left = (height - scaled[0]) // 2, (width - scaled[1]) // 2
        canvas[top : top + scaled[0], left : left + scaled[1]] = image_HWC
        return canvas
    return _cut(image_HWC, height, width)


def _cut(image_HWC: np.ndarray, height: int, width: int) -> np.ndarray:
    """Cut the centre out; the rest is let go."""
    top, left = (image_HWC.shape[0] - height) // 2, (image_HWC.shape[1] - width) // 2
    return image_HWC[top : top + height, left : left + width].copy()


def _resize(
    image_HWC: np.ndarray, size: tuple[int, ...], resampling: str
) -> np.ndarray:
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
