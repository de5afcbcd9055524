"""CIE Lab (D65) of sRGB images: the colours that colorization predicts, and the lightness that its encoders see."""

from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

# sRGB's primaries in XYZ, and its white (D65, 2 degrees), as scikit-image has them
X_WEIGHTS, Y_WEIGHTS, Z_WEIGHTS = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
WHITE = (0.95047, 1.0, 1.08883)
LEVELS = 2**16 - 4  # luminances in whole numbers that fit 16 bits even when three of them are rounded up

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Words = np.ndarray[Any, np.dtype[np.uint16]]


def rgb_to_lab(images: Tensor) -> Tensor:
    """Lab of sRGB images (B, 3, H, W) in [0, 1], the same shape: L in 0..100, a in -86.2..98.2, b in -107.9..94.5."""
    linear = _linear(images)
    x, y, z = (
        _response(_weighted(linear, weights) / white)
        for weights, white in zip((X_WEIGHTS, Y_WEIGHTS, Z_WEIGHTS), WHITE, strict=True)
    )
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


def lightness(images: Tensor) -> Tensor:
    """L of Lab in 0..100, (B, 1, H, W), of sRGB images (B, 3, H, W) in [0, 1]."""
    return (116 * _response(_weighted(_linear(images), Y_WEIGHTS)) - 16).unsqueeze(1)


def lightness_image(image: Image.Image) -> Image.Image:
    """L of Lab as an 8-bit grey image, 255 for L = 100. (Pillow's own grey is another one: a luma, not linear in L.)

    Args:
        image: Of any mode.
    """
    weights, levels = _tables()
    pixels = np.asarray(image.convert("RGB"))  # (H, W, 3)
    luminance = weights[0][pixels[..., 0]] + weights[1][pixels[..., 1]] + weights[2][pixels[..., 2]]
    return Image.fromarray(levels[luminance])


@cache
def _tables() -> tuple[list[Words], Bytes]:
    """What each level of red, green and blue adds to the luminance, and the 8-bit lightness of each luminance."""
    linear = _linear(torch.arange(256, dtype=torch.float64) / 255)
    weights = [(linear * weight * LEVELS).round().numpy().astype(np.uint16) for weight in Y_WEIGHTS]
    luminance = torch.arange(2**16, dtype=torch.float64) / LEVELS
    return weights, (2.55 * (116 * _response(luminance) - 16)).round().clamp(0, 255).numpy().astype(np.uint8)


def _linear(values: Tensor) -> Tensor:
    """The intensities that sRGB's values stand for, all in [0, 1]."""
    return torch.where(values > 0.04045, ((values + 0.055) / 1.055) ** 2.4, values / 12.92)


def _weighted(linear: Tensor, weights: tuple[float, float, float]) -> Tensor:
    """(B, H, W): by hand, since a matrix product under autocast would round to 8 bits."""
    red, green, blue = linear.unbind(1)
    return red * weights[0] + green * weights[1] + blue * weights[2]


def _response(t: Tensor) -> Tensor:
    """The eye's response f(t) to a relative intensity: a cube root with a straight start."""
    return torch.where(t > 0.008856, t.clamp(min=0.008856) ** (1 / 3), 7.787 * t + 16 / 116)
