"""A training set cut out of one photograph: A Critical Analysis of Self-Supervision. Asano, Rupprecht & Vedaldi 2020.

https://arxiv.org/abs/1904.13132 (Sec. 3.2; the authors' make_dataset_single.py)

    sslzoo pretrain rotation --data photo.jpg --single-image --recipe single_image --out RUN

Each crop depends on the seed and its own number only: workers, processes and resumed runs see the same ones.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from sslzoo.data import ImageSet, read_image

WINDOW = 0.5  # side of the square that a crop lies in, as a part of the photograph's shorter side
AREA = (1 / 500, 1.0)  # of the crop, as a part of the window's
RATIO = (3 / 4, 4 / 3)  # width / height of the crop
DEGREES = 30  # largest rotation
SHEAR = 30  # largest shear, degrees
JITTER = 0.5  # probability of changing the colours
# The crop is turned and sheared on a larger canvas, so that no corner of what is kept is black: a corner, sqrt(1/2)
# sides from the centre, comes from 1 / cos(shear) times as far at most. (The authors' factor sqrt(2) holds for the
# rotation alone, and a black corner would give its angle away.)
CANVAS = math.sqrt(2) / math.cos(math.radians(SHEAR))


def open_crops(photo: str | Path, count: int, *, size: int, seed: int) -> ImageSet:
    """Open a set of random crops of one photograph; each is cut when it is read.

    Args:
        photo: Image file.
        count: Crops.
        size: Height and width of each, pixels.
        seed: Of all crops.

    Raises:
        ValueError: `photo` is no file.
        sslzoo.data.UnreadableImageError: It cannot be decoded.
    """
    if not Path(photo).is_file():
        raise ValueError(f"single_image trains on crops of one photograph: data must be an image file, got {photo}.")
    return _CropSet(_Crops(read_image(photo), count, size, seed), [f"{i:07d}" for i in range(count)])


class _Crops(Sequence[Image.Image]):
    """Crop number i of a photograph, cut on demand."""

    def __init__(self, photo: Image.Image, count: int, size: int, seed: int) -> None:
        self.photo, self.length, self.size, self.seed = photo, count, size, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: Any) -> Any:
        return cut(self.photo, self.size, np.random.default_rng([self.seed, i]))


class _CropSet(ImageSet):
    """The crops as a set of images, whose size is known before they are cut."""

    def size(self, i: int) -> tuple[int, int]:
        assert isinstance(self._items, _Crops)
        return self._items.size, self._items.size


def cut(photo: Image.Image, size: int, random: np.random.Generator) -> Image.Image:
    """One random crop: window, crop, rotation and shear, centre, colours.

    Args:
        photo: RGB.
        size: Height and width of the crop, pixels.
        random: All that decides it.
    """
    box, canvas = random_box(photo.width, photo.height, random), math.ceil(CANVAS * size)
    # reducing_gap: a large window is first averaged over whole pixels, within 1 % of the same and several times as fast
    crop = photo.resize((canvas, canvas), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
    angle, shear = random.uniform(-DEGREES, DEGREES), random.uniform(-SHEAR, SHEAR)
    crop = F.affine(crop, angle, [0, 0], 1.0, [shear, 0.0], interpolation=InterpolationMode.BICUBIC)
    crop = F.center_crop(crop, [size, size])
    return _jitter(crop, random) if random.random() < JITTER else crop


def random_box(width: int, height: int, random: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a crop, pixels; drawn again until it fits into its window.

    Without a fallback to the whole window, as the authors have it: else it would be the most frequent crop.
    """
    window = max(1, round(WINDOW * min(width, height)))
    left, top = random.integers(width - window + 1), random.integers(height - window + 1)
    while True:
        area = window**2 * random.uniform(*AREA)
        ratio = math.exp(random.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= window and 0 < h <= window:
            break
    x, y = int(left + random.integers(window - w + 1)), int(top + random.integers(window - h + 1))
    return x, y, x + w, y + h


def _jitter(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Brightness, contrast and saturation by 0.4 and hue by 0.1, in random order."""
    changes = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    amounts = (*random.uniform(0.6, 1.4, size=3), random.uniform(-0.1, 0.1))
    for number in random.permutation(4):
        image = changes[number](image, float(amounts[number]))
    return image
