"""torchvision's detectors on any encoder with a pyramid of feature maps. `HEADS` lists them; `detector.py` trains them.

Each takes a list of images (C, H, W) in [0, 1], of any sizes, which it resizes and normalises itself: torchvision's own
classes, with the encoder's maps below, its mean and std, and anchors that fit the size of the images.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7

from sslzoo.encoder import Encoder

# torchvision's settings are for a shorter side of 800 pixels, and its anchors for objects in images of that size
USUAL_SIZE, USUAL_LONGER_SIZE = 800, 1333
SMALLEST_ANCHOR = 32  # pixels at that size
RATIOS = (0.5, 1.0, 2.0)
WIDTH_STEP = 32  # FCOS normalises in 32 groups
LEVELS = 5  # of the pyramids, with those that a pyramid adds on top of the encoder's
MIN_SCORE = 0.05  # of what is returned; average precision counts weak answers too
MOST = 100  # boxes an image, as COCO counts them
USUAL_PROPOSALS = 1000  # that are kept of an image of the usual size; twice as many in training


@dataclass(frozen=True)
class Settings:
    """How a detector is built: see `detector.detector`.

    Attributes:
        head: A name of `HEADS`.
        image_size: Shorter side that images are resized to, pixels.
        width: Channels of the feature pyramid.
        proposals: Boxes an image that the second stage of Faster R-CNN learns from in a step.
        frozen_stages: Feature maps, counted from the finest, that do not learn.
        frozen_norms: Whether batch norms of the encoder stay as they are.
    """

    head: str
    image_size: int
    width: int
    proposals: int
    frozen_stages: int
    frozen_norms: bool


class Pyramid(nn.Module):
    """An encoder's maps of some strides, and a feature pyramid network on them (Lin et al. 2017, arXiv:1612.03144).

    Args:
        encoder: Gives the maps.
        strides: Of the maps, fine to coarse, pixels.
        width: Channels of the pyramid.
        extra: What makes coarser maps of the coarsest.
    """

    def __init__(self, encoder: Encoder, strides: tuple[int, ...], width: int, extra: ExtraFPNBlock) -> None:
        super().__init__()
        self.encoder = encoder
        self.positions = [_position(encoder, stride) for stride in strides]
        channels = [encoder.channels[i] for i in self.positions]
        self.fpn = FeaturePyramidNetwork(channels, width, extra)
        self.out_channels = width

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Maps "0", "1", ..., fine to coarse, (B, width, h, w), of images (B, C, H, W)."""
        maps = self.encoder.feature_maps(images)
        named = OrderedDict((str(n), maps[i]) for n, i in enumerate(self.positions))
        return self.fpn(named)


class Trunk(nn.Module):
    """An encoder up to its map of stride 16; the stage after that belongs to the boxes.

    Args:
        encoder: One of timm's ResNets.

    Raises:
        ValueError: Another network.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        if not isinstance(getattr(encoder.model, "layer4", None), nn.Module):
            raise ValueError(  # noqa: TRY004 (the architecture is a value here)
                f"faster-rcnn-c4 puts the last stage of a ResNet on each box, and {encoder.arch} has no layer4. Take "
                "faster-rcnn, which needs feature maps alone."
            )
        self.encoder = encoder
        self.count = _position(encoder, 16) + 1
        self.out_channels = encoder.channels[self.count - 1]

    def forward(self, images: Tensor) -> Tensor:
        """The map (B, C, H / 16, W / 16)."""
        return self.encoder.feature_maps(images, count=self.count)[-1]


def _position(encoder: Encoder, stride: int) -> int:
    """Where an encoder has its map of a stride.

    Raises:
        ValueError: It has none, or several.
    """
    if encoder.reductions.count(stride) != 1:
        has = f"maps of strides {', '.join(map(str, encoder.reductions))}" if encoder.reductions else "no feature maps"
        raise ValueError(
            f"A detector needs one map of stride {stride}; {encoder.arch} has {has}. ResNets, ConvNeXts and VGGs have "
            "a pyramid of 4, 8, 16 and 32."
        )
    return encoder.reductions.index(stride)


def pyramid_width(encoder: Encoder) -> int:
    """Channels of a pyramid that suit an encoder: the papers' 256, less on a thin one; a multiple of `WIDTH_STEP`."""
    half = encoder.channels[-1] // 2 if encoder.channels else 256
    return min(256, max(WIDTH_STEP, half // WIDTH_STEP * WIDTH_STEP))


def faster_rcnn(encoder: Encoder, num_classes: int, settings: Settings) -> FasterRCNN:
    """Faster R-CNN with a feature pyramid (Ren et al. 2015, arXiv:1506.01497; Lin et al. 2017, arXiv:1612.03144)."""
    sizes = tuple((size,) for size in _pyramid_anchors(settings.image_size))
    return FasterRCNN(
        Pyramid(encoder, (4, 8, 16, 32), settings.width, LastLevelMaxPool()),
        rpn_anchor_generator=AnchorGenerator(sizes, (RATIOS,) * LEVELS),
        box_head=TwoMLPHead(settings.width * 7**2, 4 * settings.width),
        box_predictor=FastRCNNPredictor(4 * settings.width, num_classes + 1),  # class 0 is the background
        box_batch_size_per_image=settings.proposals,
        box_score_thresh=MIN_SCORE,
        **_input(encoder, settings.image_size),
    )


def faster_rcnn_c4(encoder: Encoder, num_classes: int, settings: Settings) -> FasterRCNN:
    """Faster R-CNN as papers on self-supervision use it, such as He et al. 2020, arXiv:1911.05722 (Sec. 4.2).

    One map of stride 16; the last stage of the ResNet sees each box of it. The width has nothing to decide.
    """
    kept = _kept(settings.image_size)
    return FasterRCNN(
        Trunk(encoder),
        rpn_anchor_generator=AnchorGenerator((tuple(_anchors(settings.image_size / USUAL_SIZE)),), (RATIOS,)),
        rpn_post_nms_top_n_train=2 * kept,
        rpn_post_nms_top_n_test=kept,
        box_roi_pool=MultiScaleRoIAlign(["0"], output_size=14, sampling_ratio=2),
        # a function, since the stage already is a part of the encoder: its tensors must not be there twice
        box_head=partial(_last_stage, encoder),
        box_predictor=FastRCNNPredictor(encoder.channels[-1], num_classes + 1),
        box_batch_size_per_image=settings.proposals,
        box_score_thresh=MIN_SCORE,
        **_input(encoder, settings.image_size),
    )


def _last_stage(encoder: Encoder, boxes: Tensor) -> Tensor:
    """Features (R, D) of boxes (R, C, 14, 14)."""
    network: Any = encoder.model
    features: Tensor = network.layer4(boxes).mean((2, 3))
    return features


def retinanet(encoder: Encoder, num_classes: int, settings: Settings) -> RetinaNet:
    """RetinaNet (Lin et al. 2017, arXiv:1708.02002), with the head of torchvision's second version.

    That is group norm and GIoU: without a norm, the paper's first weights of std 0.01 let a thin head pass nothing on.
    """
    thirds = [2 ** (n / 3) for n in range(3)]
    sizes = tuple(tuple(size * third for third in thirds) for size in _pyramid_anchors(settings.image_size))
    norm = partial(nn.GroupNorm, settings.width // 8)  # 8 channels a group, as 32 groups of 256 have
    head = RetinaNetHead(settings.width, len(thirds) * len(RATIOS), num_classes, norm_layer=norm)
    head.regression_head._loss_type = "giou"
    return RetinaNet(
        Pyramid(encoder, (8, 16, 32), settings.width, LastLevelP6P7(settings.width, settings.width)),
        num_classes,
        anchor_generator=AnchorGenerator(sizes, (RATIOS,) * LEVELS),
        head=head,
        score_thresh=MIN_SCORE,
        detections_per_img=MOST,
        **_input(encoder, settings.image_size),
    )


def fcos(encoder: Encoder, num_classes: int, settings: Settings) -> FCOS:
    """FCOS (Tian et al. 2019, arXiv:1904.01355). It has points instead of anchors: one for each place of a map."""
    return FCOS(
        Pyramid(encoder, (8, 16, 32), settings.width, LastLevelP6P7(settings.width, settings.width)),
        num_classes,
        score_thresh=MIN_SCORE,
        detections_per_img=MOST,
        **_input(encoder, settings.image_size),
    )


def _kept(image_size: int) -> int:
    """Proposals of an image that the last stage sees: as many of all anchors as the papers keep, where 1000 are usual.

    A small image has fewer than 1000 anchors on a map of stride 16. Were all of them kept, the region proposal network
    would leave nothing out, and the last stage had to tell objects from parts of them, which look alike on few places.
    """
    return min(USUAL_PROPOSALS, max(MOST, round(USUAL_PROPOSALS * (image_size / USUAL_SIZE) ** 2)))


def _anchors(scale: float) -> list[float]:
    """Sides of anchors in pixels, each twice the one before; `scale` is 1 for images of the usual size."""
    return [SMALLEST_ANCHOR * scale * 2**n for n in range(LEVELS)]


def _pyramid_anchors(image_size: int) -> list[float]:
    """Sides of the anchors of each level of a pyramid, pixels.

    Objects are smaller in smaller images, but the strides of the maps stay: anchors in proportion would put most
    objects on maps of a few places only. So anchors shrink by the root of what the image does.
    """
    return _anchors(math.sqrt(image_size / USUAL_SIZE))


def _input(encoder: Encoder, image_size: int) -> dict[str, Any]:
    cfg = encoder.config["pretrained_cfg"]
    return {
        "min_size": image_size,
        "max_size": longer_side(image_size),
        "image_mean": list(cfg["mean"]),
        "image_std": list(cfg["std"]),
    }


def longer_side(image_size: int) -> int:
    """The longer side, at most, of images whose shorter side is `image_size`; pixels."""
    return round(image_size * USUAL_LONGER_SIZE / USUAL_SIZE)


HEADS: dict[str, Callable[[Encoder, int, Settings], nn.Module]] = {
    "faster-rcnn": faster_rcnn,
    "faster-rcnn-c4": faster_rcnn_c4,
    "retinanet": retinanet,
    "fcos": fcos,
}
WITH_BACKGROUND = ("faster-rcnn", "faster-rcnn-c4")  # whose class 0 is "nothing"
