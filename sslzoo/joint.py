"""Views of images together with what is marked on them: masks and boxes go where their pixels go.

    samples = JointSamples(data, conversion(config), training_view((256, 256), config), seed=0)
    image, target = samples[3]      # uint8 (C, H, W), and {"masks": (H, W)} or {"boxes": (n, 4), "labels": (n,)}

Built on torchvision's transforms v2 and its tv_tensors, which tell pixels, masks and boxes apart.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import get_size

from sslzoo.data import ImageSet
from sslzoo.transforms import to_tensor

IGNORE = 255  # in masks: pixels that count neither in the loss nor in a metric
SCALE = (0.5, 2.0)  # of random views; 1 is the scale of evaluation
JITTER = 0.3  # of brightness, contrast and saturation, as a part of each

Target = dict[str, Tensor]
Size = tuple[int, int]  # height and width, pixels


class MarkedImages(ABC):
    """Images with something marked on each of them, read when asked for.

    Args:
        images: The images.
    """

    def __init__(self, images: ImageSet) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    @property
    def names(self) -> Sequence[str]:
        """Of the images."""
        return self.images.names

    @property
    def root(self) -> Path | None:
        """The folder of the images, or None."""
        return self.images.root

    @abstractmethod
    def example(self, i: int) -> tuple[Image.Image, Target]:
        """Image `i`, and its tv_tensors: masks, or boxes with the tensor "labels"."""


class JointSamples(Dataset[tuple[Tensor, Target]]):
    """Views of images, uint8 (C, H, W), and their targets.

    A random view is drawn from random numbers seeded by (seed, epoch, position): views depend neither on workers nor
    on processes, and a run that goes on sees what it would have seen.

    Args:
        data: Images and targets.
        convert: PIL image -> one with the channels that the network sees.
        view: Of both.
        seed: Of random views; None for a view without randomness.
    """

    def __init__(
        self, data: MarkedImages, convert: Callable[[Image.Image], Image.Image], view: v2.Transform, seed: int | None
    ) -> None:
        self.data, self.convert, self.view, self.seed, self.epoch = data, convert, view, seed, 0

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> tuple[Tensor, Target]:
        image, target = self.data.example(i)
        pixels = as_pixels(self.convert(image))
        if self.seed is None:
            return self._viewed(pixels, target)
        with torch.random.fork_rng(devices=[]):
            # only the CPU's generator, which transforms use: dropout on a GPU draws from another
            torch.default_generator.manual_seed(Random(f"{self.seed} {self.epoch} {i}").getrandbits(63))
            return self._viewed(pixels, target)

    def _viewed(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        image, target = self.view(image, target)
        if "boxes" in target:  # those that the crop cut away
            image, target = _TIDY(image, target)
        return image, target

    def set_epoch(self, epoch: int) -> None:
        """Take the views of this epoch, 0 being the first."""
        self.epoch = epoch


def as_pixels(image: Image.Image) -> tv_tensors.Image:
    """PIL image -> uint8 (C, H, W)."""
    return tv_tensors.Image(to_tensor(image))


class Fit(v2.Transform):  # type: ignore[misc]
    """Scale so that the image just fits into a box, times a random factor.

    Args:
        size: Of the box.
        scale: Least and greatest factor, uniformly drawn.
    """

    def __init__(self, size: Size, scale: tuple[float, float] = (1.0, 1.0)) -> None:
        super().__init__()
        self.size, self.scale = size, scale

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """The new size, of at least one pixel."""
        low, high = self.scale
        factor = low if low == high else float(torch.empty(()).uniform_(low, high))
        height, width = get_size(next(x for x in flat_inputs if isinstance(x, tv_tensors.Image)))
        return {"size": fitted((height, width), self.size, factor)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize one of image, masks and boxes; masks take the nearest pixel."""
        return v2.functional.resize(inpt, params["size"], antialias=True)


class PadTo(v2.Transform):  # type: ignore[misc]
    """Pad on the right and at the bottom.

    Args:
        size: At least that of the image.
        fill: Type of tv_tensor -> value.
    """

    def __init__(self, size: Size, fill: Mapping[Any, Any]) -> None:
        super().__init__()
        self.size, self.fill = size, dict(fill)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """How much to pad: left, top, right, bottom."""
        height, width = get_size(next(x for x in flat_inputs if isinstance(x, tv_tensors.Image)))
        return {"padding": [0, 0, self.size[1] - width, self.size[0] - height]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Pad one of image, masks and boxes."""
        fill = self.fill.get(type(inpt), self.fill["others"])
        return v2.functional.pad(inpt, params["padding"], fill=fill)


def fitted(size: Size, box: Size, factor: float = 1.0) -> Size:
    """Height and width of an image that is scaled to fit into a box, times a factor."""
    scale = min(box[0] / size[0], box[1] / size[1]) * factor
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def training_view(size: Size, config: Mapping[str, Any]) -> v2.Transform:
    """Random views of one size: scaled, cropped or padded, mirrored half of the time, in other colours.

    Args:
        size: Of the views.
        config: The encoder's config.json, whose mean colour is padded with.
    """
    colours = v2.ColorJitter(brightness=JITTER, contrast=JITTER, saturation=JITTER)
    crop = v2.RandomCrop(size, pad_if_needed=True, fill=_fill(config))
    return v2.Compose([Fit(size, SCALE), crop, v2.RandomHorizontalFlip(), colours])


def evaluation_view(size: Size, config: Mapping[str, Any]) -> v2.Transform:
    """The view without randomness: scaled to fit, padded on the right and at the bottom; see `training_view`."""
    return v2.Compose([Fit(size), PadTo(size, _fill(config))])


def _fill(config: Mapping[str, Any]) -> dict[Any, Any]:
    """What to pad with: the mean, which is 0 after normalisation; in masks what is ignored."""
    mean = [round(255 * value) for value in config["pretrained_cfg"]["mean"]]
    return {tv_tensors.Image: mean, tv_tensors.Mask: IGNORE, "others": 0}


_TIDY = v2.Compose([v2.ClampBoundingBoxes(), v2.SanitizeBoundingBoxes()])
