"""From a PIL image to the tensor an encoder expects."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.data.transforms import str_to_interp_mode
from torch import Tensor
from torchvision.transforms import Compose, Normalize, RandomHorizontalFlip, RandomResizedCrop, ToTensor

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


def eval_transform(pretrained_cfg: Mapping[str, Any]) -> Callable[[Image.Image], Tensor]:
    """Build the evaluation transform of an encoder: convert, resize, crop, scale to [0, 1], normalise.

    It is timm's own transform for these settings (so that every library that reads the same config.json sees
    the same pixels), after a conversion to the number of channels the network has. It can be pickled.

    Args:
        pretrained_cfg: timm's settings: `input_size` (C, H, W), `interpolation`, `crop_pct`, `crop_mode`, `mean`,
            `std`.

    Returns:
        A callable: PIL image of any mode and size -> float32 tensor (C, H, W).

    Raises:
        ValueError: `input_size` has neither 1 nor 3 channels.
    """
    settings = _settings(pretrained_cfg)
    mode = ConvertMode(MODES[settings["input_size"][0]])
    return Compose([mode, *create_transform(**settings).transforms])


def train_transform(pretrained_cfg: Mapping[str, Any]) -> Callable[[Image.Image], Tensor]:
    """Build the training transform of an encoder: a random crop, resized, mirrored half of the time, and normalised.

    Random numbers come from torch's global generator. It can be pickled.

    Args:
        pretrained_cfg: See `eval_transform`, whose results have the same shape and scale.

    Raises:
        ValueError: `input_size` has neither 1 nor 3 channels.
    """
    settings = _settings(pretrained_cfg)
    interpolation = str_to_interp_mode(settings["interpolation"])
    return Compose(
        [
            ConvertMode(MODES[settings["input_size"][0]]),
            RandomResizedCrop(settings["input_size"][1:], scale=CROP_AREA, interpolation=interpolation),
            RandomHorizontalFlip(),
            ToTensor(),
            Normalize(settings["mean"], settings["std"]),
        ]
    )


def _settings(pretrained_cfg: Mapping[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = resolve_data_config(pretrained_cfg=dict(pretrained_cfg))
    if settings["input_size"][0] not in MODES:
        raise ValueError(f"Images have 1 or 3 channels here, input_size {settings['input_size']} asks for another.")
    return settings
