"""From a PIL image to the tensor an encoder expects."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.data.transforms import str_to_pil_interp
from torch import Tensor
from torchvision.transforms import Compose

from sslzoo.lab import lightness, lightness_image
from sslzoo.weights import sees_lightness

MODES = {1: "L", 3: "RGB"}  # by number of channels
# Of a training crop, as a part of the image: half of each side at the least, so that its subject mostly stays in.
CROP_AREA = (0.25, 1.0)


@dataclass(frozen=True)
class ConvertMode:
    """Convert a PIL image to one mode: palette, grey and RGBA images all reach the network with its channels."""

    mode: str

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the image itself if it has that mode already."""
        return image if image.mode == self.mode else image.convert(self.mode)


TO_RGB = ConvertMode("RGB")


def conversion(config: Mapping[str, Any]) -> Callable[[Image.Image], Image.Image]:
    """Return what brings a PIL image of any mode to the channels that an encoder sees. It can be pickled.

    Networks of one channel see the lightness L of Lab if their config says so, else Pillow's grey.

    Args:
        config: The encoder's config.json.

    Raises:
        ValueError: `input_size` has neither 1 nor 3 channels.
    """
    channels = _settings(config)["input_size"][0]
    return lightness_image if sees_lightness(config) else ConvertMode(MODES[channels])


def eval_transform(config: Mapping[str, Any]) -> Callable[[Image.Image], Tensor]:
    """Build the evaluation transform of an encoder: convert, resize, crop, scale to [0, 1], normalise.

    It is timm's own transform for these settings (so that every library that reads the same config.json sees
    the same pixels), after a conversion to the channels that the network sees. It can be pickled.

    Args:
        config: The encoder's config.json: timm's settings in `pretrained_cfg` (`input_size` (C, H, W),
            `interpolation`, `crop_pct`, `crop_mode`, `mean`, `std`), and our own block.

    Returns:
        A callable: PIL image of any mode and size -> float32 tensor (C, H, W).

    Raises:
        ValueError: `input_size` has neither 1 nor 3 channels.
    """
    return Compose([conversion(config), *create_transform(**_settings(config)).transforms])


def train_view(config: Mapping[str, Any]) -> "RandomCrop":
    """Build the random views that an encoder is fine-tuned on.

    Args:
        config: The encoder's config.json.

    Raises:
        ValueError: `input_size` has neither 1 nor 3 channels.
    """
    settings = _settings(config)
    return RandomCrop(
        settings["input_size"][1:], conversion(config), CROP_AREA, str_to_pil_interp(settings["interpolation"])
    )


@dataclass(frozen=True)
class RandomCrop:
    """A view: a random crop of a part of the area and aspect ratio 3/4 to 4/3, resized, mirrored half of the time.

    As torchvision's RandomResizedCrop and RandomHorizontalFlip, in one call of Pillow: a third of their time.

    Attributes:
        size: (height, width) of the view, pixels.
        convert: What brings an image to the channels that are wanted.
        area: Least and greatest part of the image's area.
        interpolation: Pillow's.
    """

    size: tuple[int, int]
    convert: Callable[[Image.Image], Image.Image] = TO_RGB
    area: tuple[float, float] = (0.08, 1.0)
    interpolation: Image.Resampling = Image.Resampling.BICUBIC

    def __call__(self, image: Image.Image, random: Random) -> Image.Image:
        """A view of `image`, drawn from `random`."""
        left, top, width, height = self.box(image.width, image.height, random)
        box = (left, top, left + width, top + height)
        view = self.convert(image).resize(self.size[::-1], self.interpolation, box=box)
        return view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else view

    def box(self, width: int, height: int, random: Random) -> tuple[int, int, int, int]:
        """Left, top, width and height of a random crop, pixels; the whole image if ten draws do not fit into it."""
        for _ in range(10):
            area = width * height * random.uniform(*self.area)
            ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return random.randint(0, width - w), random.randint(0, height - h), w, h
        return 0, 0, width, height


def to_tensor(image: Image.Image) -> Tensor:
    """(C, H, W), uint8."""
    pixels = np.asarray(image)
    return torch.from_numpy((pixels[..., None] if pixels.ndim == 2 else pixels).transpose(2, 0, 1).copy())


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(B, C, H, W), uint8 -> float32, as an encoder takes it: `mean` and `std` are by channel, of pixels in [0, 1]."""
    shape = (-1, 1, 1)
    return (images / 255 - images.new_tensor(mean, dtype=torch.float32).view(shape)) / images.new_tensor(
        std, dtype=torch.float32
    ).view(shape)


def prepare(images: Tensor, config: Mapping[str, Any]) -> Tensor:
    """What `eval_transform` ends with, on a batch: (B, 3, H, W) sRGB in [0, 1] -> (B, C, H, W) as an encoder takes it.

    Args:
        images: Of the size that the network shall see.
        config: The encoder's config.json.
    """
    if sees_lightness(config):
        images = lightness(images) / 100
    mean, std = (torch.tensor(config["pretrained_cfg"][key]).view(-1, 1, 1).to(images) for key in ("mean", "std"))
    return (images - mean) / std


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = resolve_data_config(pretrained_cfg=dict(config["pretrained_cfg"]))
    if settings["input_size"][0] not in MODES:
        raise ValueError(f"Images have 1 or 3 channels here, input_size {settings['input_size']} asks for another.")
    return settings
