"""One image in, one upright RGB `PIL.Image` out: files and arrays become what an image viewer would show.

Pillow's own `convert("RGB")` clips 16-bit grey to white, shows whatever colour lies under full transparency, and
ignores the camera's orientation; all three are put right here.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

CHANNELS = (1, 3, 4)  # grey, RGB, RGBA
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImageError(ValueError):
    """An image that cannot be decoded: `name` says which, `reason` why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)  # both as args, so that it survives pickling between worker processes
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"Cannot read image {self.name}: {self.reason}"


def read_image(file: str | os.PathLike[str] | IO[bytes]) -> Image.Image:
    """Read an image file as a viewer shows it, in RGB.

    The camera's orientation (EXIF) is applied and transparency is laid over white. 16-bit grey is scaled to 8 bits;
    wider integers and floats are too if they lie in 0..65535 and [0, 1], and otherwise stretched from their own
    minimum and maximum to 0..255. Of an animation the first frame is taken.

    Args:
        file: Path, or a binary file object.

    Raises:
        UnreadableImageError: The file is missing, empty, truncated, no image, or too large to be one.
    """
    return read_sized(file)[0]


def read_sized(
    file: str | os.PathLike[str] | IO[bytes], min_size: int | None = None
) -> tuple[Image.Image, tuple[int, int]]:
    """Read an image as `read_image` does, together with its size.

    Args:
        file: Path, or a binary file object.
        min_size: The shortest side, in pixels, that will do. A larger JPEG is then decoded at 1/2, 1/4 or 1/8 of its
            size, which is several times as fast.

    Returns:
        The upright RGB image, and the (height, width) of the whole image, whatever the scale it was decoded at.
    """
    with _errors_name(file), Image.open(file) as image:
        width, height = image.size
        reduced = min_size is not None and image.draft(None, (min_size, min_size)) and image.size != (width, height)
        image.load()  # before the orientation is asked for: TIFF is turned, and PNG's EXIF read, by loading
        if not reduced:
            width, height = image.size
        orientation = _orientation(image)
        size = (width, height) if orientation >= 5 else (height, width)
        return _upright(_to_rgb(image), orientation), size


def image_size(file: str | os.PathLike[str] | IO[bytes] | Image.Image) -> tuple[int, int]:
    """Return an image's upright (height, width) from its header, without decoding the pixels.

    Raises:
        UnreadableImageError: The header cannot be read. (That it can does not promise that the pixels can.)
    """
    if isinstance(file, Image.Image):
        return file.size[::-1] if _orientation(file) < 5 else file.size
    with _errors_name(file), Image.open(file) as image:
        # without "exif" in info, asking for the orientation would make PNG decode the pixels
        turned = "exif" in image.info and _orientation(image) >= 5
        return image.size if turned else image.size[::-1]


def to_image(obj: Image.Image | np.ndarray[Any, Any] | Tensor) -> Image.Image:
    """Convert an image held in memory to an upright RGB `PIL.Image`.

    Args:
        obj: A PIL image of any mode; or an array or tensor of shape (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4
            channels: uint8, bool, uint16 (scaled to 8 bits), or float in [0, 1].

    Raises:
        TypeError: Not an image, or a dtype whose range is unknown.
        ValueError: A shape that is no image's, or floats outside [0, 1].
        UnreadableImageError: No pixels, NaN or infinite values, or a PIL image whose file is damaged.
    """
    if isinstance(obj, Image.Image):
        with _errors_name(getattr(obj, "filename", "") or "PIL image"):
            obj.load()
            return _upright(_to_rgb(obj), _orientation(obj))
    if isinstance(obj, Tensor):
        obj = tensor_to_array(obj)
    if isinstance(obj, np.ndarray):
        return _array_to_image(channels_last(obj))
    raise TypeError(f"Expected a PIL image, a NumPy array or a tensor, got {type(obj).__name__}.")


def channels_last(array: np.ndarray[Any, Any], *, stacked: bool = False) -> np.ndarray[Any, Any]:
    """Return a view of shape (H, W, C), or (N, H, W, C) if `stacked`, of one image or a stack of them.

    Raises:
        TypeError: A dtype that images do not come in.
        ValueError: A shape that is no image's.
    """
    if not (array.dtype in (np.uint8, np.uint16, np.bool_) or np.issubdtype(array.dtype, np.floating)):
        raise TypeError(
            f"Images need dtype uint8, uint16, bool or float, got {array.dtype}. "
            "Values from 0 to 255 become images by array.astype('uint8')."
        )
    shape = array.shape[1:] if stacked else array.shape
    if len(shape) == 2:
        return array[..., None]
    if len(shape) == 3 and shape[-1] in CHANNELS:
        return array
    if len(shape) == 3 and shape[0] in CHANNELS:
        return np.moveaxis(array, -3, -1)
    n = "N, " if stacked else ""
    raise ValueError(
        f"Expected shape ({n}H, W), ({n}H, W, C) or ({n}C, H, W) with 1, 3 or 4 channels, got {array.shape}."
    )


def tensor_to_array(tensor: Tensor, *, stacked: bool = False) -> np.ndarray[Any, Any]:
    """Return a tensor as an array, (C, H, W) as (H, W, C): torch's order is assumed even where both would fit."""
    if tensor.is_floating_point():
        tensor = tensor.float()  # NumPy has no bfloat16
    array: np.ndarray[Any, Any] = tensor.detach().cpu().numpy()
    channels_first = array.ndim == 3 + stacked and array.shape[-3] in CHANNELS
    return np.moveaxis(array, -3, -1) if channels_first else array


def _array_to_image(array: np.ndarray[Any, Any]) -> Image.Image:
    """Convert an (H, W, C) array to RGB."""
    if array.size == 0:
        raise UnreadableImageError("array", f"it has no pixels: shape {array.shape}")
    pixels = _to_uint8(array)
    return _to_rgb(Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))


def _to_uint8(array: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.uint16:
        return np.rint(array / 257).astype(np.uint8)  # 65535 = 255 * 257
    low, high = float(array.min()), float(array.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise UnreadableImageError("array", "it holds NaN or infinite values")
    if low < -1e-3 or high > 1 + 1e-3:  # what resampling in float overshoots is clipped
        raise ValueError(
            f"Float images must lie in [0, 1], got values from {low:g} to {high:g}. Divide by the largest possible "
            "value (255 for 8-bit data), and undo any normalisation by mean and std."
        )
    return np.rint(np.clip(array, 0, 1) * 255).astype(np.uint8)


def _to_rgb(image: Image.Image) -> Image.Image:
    if 0 in image.size:
        raise ValueError(f"it has no pixels: {image.width} x {image.height}")
    if image.mode.startswith("I"):  # "I;16", "I;16B", and "I", which older Pillow uses for 16-bit files too
        return _stretch(np.asarray(image), full=65535)
    if image.mode == "F":
        return _stretch(np.asarray(image), full=1)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _stretch(pixels: np.ndarray[Any, Any], full: float) -> Image.Image:
    """Map [0, full] to 0..255; values outside it have no known scale, so their own minimum and maximum serve."""
    low, high = float(pixels.min()), float(pixels.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("it holds NaN or infinite values")
    if low >= 0 and high <= full:
        low, high = 0.0, full
    scale = 255 / (high - low) if high > low else 0.0
    return Image.fromarray(np.rint((pixels.astype(np.float64) - low) * scale).astype(np.uint8)).convert("RGB")


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 5 and above swap height and width."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF raises all sorts; the picture itself may be fine
        return 1
    return orientation if orientation in _TRANSPOSE else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    if orientation == 1:
        return image
    turned = image.transpose(_TRANSPOSE[orientation])
    turned.info = {}  # or the copied EXIF would have the next reader turn it again
    return turned


@contextmanager
def _errors_name(file: object) -> Iterator[None]:
    """Turn whatever goes wrong inside into an `UnreadableImageError` for this file."""
    try:
        yield
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, zlib.error, KeyError and more
        named = isinstance(file, (str, os.PathLike))
        name = str(file) if named else str(getattr(file, "name", "in memory"))
        raise UnreadableImageError(name, _reason(error, name)) from error


def _reason(error: Exception, name: str) -> str:
    if isinstance(error, UnidentifiedImageError):
        empty = Path(name).is_file() and Path(name).stat().st_size == 0
        return "the file is empty" if empty else "not an image that Pillow can read"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
