"""What is evaluated: encoders, the same with random weights, raw pixels; how each sees an image and makes features."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from random import Random

import safetensors.torch
from PIL import Image
from torch import Tensor, nn

from sslzoo import originals, weights, zoo
from sslzoo.data import ImageSet
from sslzoo.encoder import Encoder, create, load
from sslzoo.transforms import RandomCrop, conversion, normalise, to_tensor
from sslzoo.weights import sees_lightness

from .results import PIXELS, SEES_LIGHTNESS, TOP_PIXELS

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class EvaluationError(ValueError):
    """Something cannot be evaluated; the message says what is needed."""


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a function from images to features.

    Attributes:
        name: As results.csv has it.
        sha256: Of its weights, or "".
        encode: Images (B, C, H, W) -> features (B, D).
        centre: PIL image -> its one view without randomness, (C, H, W).
        view: PIL image, random numbers -> a random view of the same size, PIL.
        mean: With `std`, by channel, for pixels in [0, 1]: how random views are normalised.
        std: See `mean`.
        max_views: At most so many random views an image make sense.
    """

    name: str
    sha256: str
    encode: nn.Module
    centre: Callable[[Image.Image], Tensor]
    view: Callable[[Image.Image, Random], Image.Image]
    mean: Sequence[float]
    std: Sequence[float]
    max_views: int


def open_subject(model: str, seed: int, images: ImageSet) -> Subject:
    """Find what the user wants evaluated.

    Args:
        model: Zoo id or alias, folder of a run, "random:ID", "random:ARCH" or "random:ARCH@SIZE" (ARCH may end in
            "-lightness": a network that sees only that), "pixels", or "pixels:tophalf", which are the pixels that
            networks of the top half see.
        seed: Of random weights.
        images: The training images: "pixels" takes its size from them.

    Raises:
        EvaluationError: No such architecture, or images of several sizes for "pixels".
        sslzoo.zoo.UnknownModelError: No such model.
        sslzoo.weights.WeightsError: Its files are damaged.
    """
    if model in (PIXELS, TOP_PIXELS):
        return _pixels(model, images)
    if model.startswith("random:"):
        encoder = _random(model.removeprefix("random:"), seed)
        state = {key: value.contiguous() for key, value in encoder.model.state_dict().items()}
        digest = sha256(safetensors.torch.save(state)).hexdigest()
        kind = SEES_LIGHTNESS if sees_lightness(encoder.config) else ""
        return _subject(f"random:{encoder.arch}{kind}@{encoder.input_size[1]}", digest, encoder)
    folder = weights.locate(model)
    encoder = load(folder)
    block = encoder.config.get("sslzoo") or {}
    in_zoo = folder.parent in (weights.BUNDLED, originals.home() / "models")
    name = folder.name if in_zoo else f"run:{block.get('method')}-{encoder.arch}-{block.get('dataset')}"
    return _subject(name, weights.sha256(folder / weights.WEIGHTS), encoder)


def _random(name: str, seed: int) -> Encoder:
    """The network of a zoo id with random weights, or of "ARCH@SIZE"."""
    try:
        row = zoo.info(name)
    except zoo.UnknownModelError:
        arch, _, size = name.partition("@")
        plain = arch.removesuffix(SEES_LIGHTNESS)
        if size and not size.isdigit():
            raise EvaluationError(
                f"random:{name}: the size after @ must be a number of pixels, got {size!r}."
            ) from None
        try:
            return create(plain, seed=seed, image_size=int(size) if size else None, lightness=plain != arch)
        except ValueError as error:
            raise EvaluationError(f"random:{name}: {error}") from error
    return create(row.arch, seed=seed, image_size=row.input_size[1], lightness=row.input_size[0] == 1)


def _subject(name: str, digest: str, encoder: Encoder) -> Subject:
    cfg = encoder.config["pretrained_cfg"]
    view = RandomCrop(encoder.input_size[1:], conversion(encoder.config))
    return Subject(name, digest, encoder, encoder.transform, view, tuple(cfg["mean"]), tuple(cfg["std"]), sys.maxsize)


def _pixels(name: str, images: ImageSet) -> Subject:
    """Raw pixels. Their one other view is the mirror image: a cropped image has its pixels in other places."""
    encode = nn.Sequential(TopHalf(), nn.Flatten()) if name == TOP_PIXELS else nn.Flatten()
    return Subject(name, "", encode, Pixels(images.size(0)), mirrored, MEAN, STD, max_views=1)


class TopHalf(nn.Module):
    """Images (B, C, H, W) -> their upper H // 2 rows."""

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H // 2, W)."""
        return images[:, :, : images.shape[2] // 2]


def mirrored(image: Image.Image, random: Random) -> Image.Image:
    """The mirror image, whatever `random` says."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


@dataclass(frozen=True)
class Pixels:
    """PIL image -> its normalised pixels, (3, H, W).

    Attributes:
        size: (height, width) that all images must have.
    """

    size: tuple[int, int]

    def __call__(self, image: Image.Image) -> Tensor:
        """Raises EvaluationError for an image of another size."""
        if (image.height, image.width) != self.size:
            raise EvaluationError(
                f"pixels needs images of one size; this one is {image.height}×{image.width}, "
                f"the first {self.size[0]}×{self.size[1]}"
            )
        return normalise(to_tensor(image)[None], MEAN, STD)[0]
