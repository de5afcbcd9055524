"""Decoders of segmentation networks: from an encoder's feature maps to scores of the classes, at some stride.

FCN's and DeepLabV3's are torchvision's, the U-Net and pyramid ones those of segmentation-models-pytorch (smp).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.fcn import FCNHead

from sslzoo.encoder import Encoder

STRIDES = (1, 2, 4, 8, 16, 32)  # of the maps that smp's decoders take


class Coarsest(nn.Module):
    """A decoder that sees the coarsest maps only.

    Args:
        layers: (B, C, h, w) -> scores (B, K, h, w).
    """

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, images: Tensor, maps: list[Tensor]) -> Tensor:
        """Scores (B, K, h, w)."""
        return self.layers(maps[-1])


class FCN8s(nn.Module):
    """Scores of the maps at strides 8, 16 and 32, each enlarged and added to the next finer ones.

    Long et al. 2015, https://arxiv.org/abs/1411.4038, Sec. 4.2, with bilinear enlarging throughout.

    Args:
        channels: Of the three maps, fine to coarse.
        num_classes: K.
    """

    def __init__(self, channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.scores = nn.ModuleList(nn.Conv2d(c, num_classes, 1) for c in channels)
        for parameter in self.scores.parameters():
            nn.init.zeros_(parameter)  # as in the paper

    def forward(self, images: Tensor, maps: list[Tensor]) -> Tensor:
        """Scores (B, K, H / 8, W / 8)."""
        fine, middle, coarse = (score(m) for score, m in zip(self.scores, maps[-3:], strict=True))
        total = middle + F.interpolate(coarse, middle.shape[-2:], mode="bilinear", align_corners=False)
        return fine + F.interpolate(total, fine.shape[-2:], mode="bilinear", align_corners=False)


class Pyramid(nn.Module):
    """A decoder of segmentation-models-pytorch, which takes the images and maps at strides 2, 4, ... of them.

    Where an encoder has no maps at stride 2 (ConvNeXt) these have no channels, as in smp itself.

    Args:
        decoder: smp's.
        channels: Of its output.
        num_classes: K.
        kernel: Of the convolution that makes scores of it.
    """

    def __init__(self, decoder: nn.Module, channels: int, num_classes: int, kernel: int = 1) -> None:
        from segmentation_models_pytorch.base import initialization

        super().__init__()
        self.decoder = decoder
        self.score = nn.Conv2d(channels, num_classes, kernel, padding=kernel // 2)
        initialization.initialize_decoder(self.decoder)
        initialization.initialize_head(self.score)

    def forward(self, images: Tensor, maps: list[Tensor]) -> Tensor:
        """Scores (B, K, h, w)."""
        return self.score(self.decoder(self._pyramid(images, maps)))

    @staticmethod
    def _pyramid(images: Tensor, maps: list[Tensor]) -> list[Tensor]:
        rows = images.shape[-2]
        none = images.new_empty(len(images), 0, rows // 2, images.shape[-1] // 2)
        fine = {1: images, 2: none} | {rows // m.shape[-2]: m for m in maps}
        return [*(fine[stride] for stride in (1, 2, 4)), *(m for m in maps if rows // m.shape[-2] > 4)]


def _channels(encoder: Encoder) -> list[int]:
    """Of what `Pyramid` makes of the encoder's maps."""
    fine = {1: encoder.input_size[0], 2: 0} | dict(zip(encoder.reductions, encoder.channels, strict=True))
    coarse = [c for c, stride in zip(encoder.channels, encoder.reductions, strict=True) if stride > 4]
    return [*(fine[stride] for stride in (1, 2, 4)), *coarse]


def _unet(encoder: Encoder, num_classes: int) -> nn.Module:
    from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder

    widths = (256, 128, 64, 32, 16)
    decoder = UnetDecoder(_channels(encoder), widths, n_blocks=len(widths))
    return Pyramid(decoder, widths[-1], num_classes, kernel=3)


def _fpn(encoder: Encoder, num_classes: int) -> nn.Module:
    from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder

    decoder = FPNDecoder(_channels(encoder))
    return Pyramid(decoder, decoder.out_channels, num_classes)


def _upernet(encoder: Encoder, num_classes: int) -> nn.Module:
    from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder

    width = 256
    return Pyramid(UPerNetDecoder(_channels(encoder), decoder_channels=width), width, num_classes)


def _pspnet(encoder: Encoder, num_classes: int) -> nn.Module:
    from segmentation_models_pytorch.decoders.pspnet.decoder import PSPDecoder

    width = 512
    return Pyramid(PSPDecoder(_channels(encoder), out_channels=width), width, num_classes, kernel=3)


def _deeplabv3plus(encoder: Encoder, num_classes: int) -> nn.Module:
    from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3PlusDecoder

    width, stride = 256, encoder.reductions[-1]
    decoder = DeepLabV3PlusDecoder(
        encoder_channels=_channels(encoder), encoder_depth=5, out_channels=width, atrous_rates=(12, 24, 36),
        output_stride=stride, aspp_separable=True, aspp_dropout=0.5,
    )  # fmt: skip
    return Pyramid(decoder, width, num_classes)


@dataclass(frozen=True)
class Head:
    """A kind of decoder.

    Attributes:
        build: Encoder, number of classes -> module of (images, maps).
        output_strides: Strides of the coarsest maps that it takes, the usual one first.
        needs: Strides of maps that the encoder must have.
        paper: Where it comes from.
    """

    build: Callable[[Encoder, int], nn.Module]
    output_strides: tuple[int, ...]
    needs: tuple[int, ...]
    paper: str


DILATED, PLAIN = (8, 16, 32), (32,)
HEADS = {
    "fcn": Head(
        lambda encoder, k: Coarsest(FCNHead(encoder.channels[-1], k)), DILATED, (), "https://arxiv.org/abs/1411.4038"
    ),
    "fcn8s": Head(
        lambda encoder, k: FCN8s(encoder.channels[-3:], k), PLAIN, (8, 16, 32), "https://arxiv.org/abs/1411.4038"
    ),
    "deeplabv3": Head(
        lambda encoder, k: Coarsest(DeepLabHead(encoder.channels[-1], k)), DILATED, (),
        "https://arxiv.org/abs/1706.05587",
    ),
    "deeplabv3plus": Head(_deeplabv3plus, (16, 8), (4,), "https://arxiv.org/abs/1802.02611"),
    "unet": Head(_unet, PLAIN, (4, 8, 16, 32), "https://arxiv.org/abs/1505.04597"),
    "fpn": Head(_fpn, PLAIN, (4, 8, 16, 32), "https://arxiv.org/abs/1612.03144"),
    "pspnet": Head(_pspnet, DILATED, (), "https://arxiv.org/abs/1612.01105"),
    "upernet": Head(_upernet, PLAIN, (4, 8, 16, 32), "https://arxiv.org/abs/1807.10221"),
}  # fmt: skip


def prepared(encoder: Encoder, head: str, output_stride: int | None) -> Encoder:
    """The encoder as a head needs it: itself, or a dilated copy of it.

    Args:
        encoder: The encoder.
        head: Name of a head.
        output_stride: Of the coarsest maps; None takes the head's usual one.

    Raises:
        ValueError: No such head, another stride than it takes, or an encoder that has not the maps it needs.
    """
    if head not in HEADS:
        raise ValueError(f"Unknown head {head!r}. There is: {', '.join(HEADS)}.")
    strides = HEADS[head].output_strides
    stride = strides[0] if output_stride is None else output_stride
    if stride not in strides:
        raise ValueError(f"Head {head} takes output_stride {' or '.join(map(str, strides))}, got {stride}.")
    if not encoder.reductions:
        raise ValueError(f"{encoder.arch} gives no feature maps, which segmentation needs: take a ResNet, say.")
    if encoder.reductions[-1] != stride:
        encoder = encoder.with_output_stride(stride)
    if missing := [need for need in HEADS[head].needs if need not in encoder.reductions]:
        raise ValueError(
            f"Head {head} needs maps at stride {', '.join(map(str, missing))}; {encoder.arch} has them at strides "
            f"{', '.join(map(str, encoder.reductions))}."
        )
    return encoder


def auxiliary(encoder: Encoder, num_classes: int) -> nn.Module:
    """A second decoder, on the maps before the coarsest, whose loss helps training (torchvision's `aux_loss`)."""
    return FCNHead(encoder.channels[-2], num_classes)


def enlarged(scores: Tensor, size: Any) -> Tensor:
    """Scores (B, K, h, w) of another height and width."""
    return F.interpolate(scores, tuple(size), mode="bilinear", align_corners=False)


def padded(images: Tensor) -> Tensor:
    """Pad images on the right and at the bottom, with the mean (0), to multiples of 32 pixels."""
    down, right = (-side % STRIDES[-1] for side in images.shape[-2:])
    return F.pad(images, (0, right, 0, down)) if down or right else images


def best_classes(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Class with the highest score at each pixel of an image of this size.

    Class after class, so that an image of many pixels needs little memory.

    Args:
        scores: (K, h, w).
        size: Height and width of the image, pixels.

    Returns:
        (H, W) uint8.
    """
    best = torch.full(size, -torch.inf, device=scores.device)
    classes = torch.zeros(size, dtype=torch.uint8, device=scores.device)
    for number, score in enumerate(scores.float()):
        large = enlarged(score[None, None], size)[0, 0]
        better = large > best
        best, classes = torch.where(better, large, best), classes.masked_fill_(better, number)
    return classes
