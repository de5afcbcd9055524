"""From a PIL image to the tensor an encoder expects."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor
from torchvision.transforms import Compose


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
    settings = resolve_data_config(pretrained_cfg=dict(pretrained_cfg))
    channels = settings["input_size"][0]
    modes = {1: "L", 3: "RGB"}
    if channels not in modes:
        raise ValueError(f"Images have 1 or 3 channels here, input_size {settings['input_size']} asks for {channels}.")
    return Compose([ConvertMode(modes[channels]), *create_transform(**settings).transforms])
