"""From a PIL image to the tensor an encoder expects."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor
from torchvision.transforms import Compose

from sslzoo.lab import lightness, lightness_image
from sslzoo.weights import LIGHTNESS


@dataclass(frozen=True)
class ConvertMode:
    """Convert a PIL image to one mode: palette, grey and RGBA images all reach the network with its channels."""

    mode: str

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the image itself if it has that mode already."""
        return image if image.mode == self.mode else image.convert(self.mode)


def conversion(config: Mapping[str, Any]) -> Callable[[Image.Image], Image.Image]:
    """What brings a PIL image of any mode to the channels that an encoder sees. It can be pickled.

    Args:
        config: The encoder's config.json.

    Returns:
        To RGB; or, for networks of one channel, to the lightness L of Lab if the config says so, else to Pillow's grey.

    Raises:
        ValueError: `input_size` has neither 1 nor 3 channels.
    """
    if sees_lightness(config):
        return lightness_image
    size = resolve_data_config(pretrained_cfg=dict(config["pretrained_cfg"]))["input_size"]
    modes = {1: "L", 3: "RGB"}
    if size[0] not in modes:
        raise ValueError(f"Images have 1 or 3 channels here, input_size {size} asks for {size[0]}.")
    return ConvertMode(modes[size[0]])


def sees_lightness(config: Mapping[str, Any]) -> bool:
    """Does the encoder with this config.json see the lightness L of Lab instead of colours?"""
    return (config.get("sslzoo") or {}).get("input") == LIGHTNESS


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
    settings = resolve_data_config(pretrained_cfg=dict(config["pretrained_cfg"]))
    return Compose([conversion(config), *create_transform(**settings).transforms])


def normalise(images: Tensor, config: Mapping[str, Any]) -> Tensor:
    """What `eval_transform` ends with, on a batch: (B, 3, H, W) sRGB in [0, 1] -> (B, C, H, W) as the network sees it.

    Args:
        images: Of the size that the network shall see.
        config: The encoder's config.json.
    """
    if sees_lightness(config):
        images = lightness(images) / 100
    mean, std = (torch.tensor(config["pretrained_cfg"][key]).view(-1, 1, 1).to(images) for key in ("mean", "std"))
    return (images - mean) / std
