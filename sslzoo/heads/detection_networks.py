"""torchvision's detectors on any encoder with a pyramid of feature maps. `HEADS` lists them; `detector.py` trains them.

Each takes a list of images (C, H, W) in [0, 1], of any sizes, which it resizes and normalises itself: torchvision's own
classes, with the encoder's maps below, its mean and std, and anchors that fit the size of the images.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7

from sslzoo.encoder import Encoder

# torchvision's settings are for a shorter side of 800 pixels, and its anchors for objects in images of that size
USUAL_SIZE, USUAL_LONGER_SIZE = 800, 1333
SMALLEST_ANCHOR = 32  # pixels at that size
RATIOS = (0.5, 1.0, 2.0)
LEVELS = 5  # of the pyramids, with those that a pyramid adds on top of the encoder's
MIN_SCORE = 0.05  # of what is returned; average precision counts weak answers too
MOST = 100  # boxes an image, as COCO counts them


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
        return self.fpn(named)  # type: ignore[no-any-return]


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
            raise ValueError(
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
    """Channels of a pyramid that suit an encoder: the papers' 256, less on a thin one."""
    return min(256, encoder.channels[-1] // 2) if encoder.channels else 256


def faster_rcnn(encoder: Encoder, num_classes: int, image_size: int, width: int) -> FasterRCNN:
    """Faster R-CNN with a feature pyramid (Ren et al. 2015, arXiv:1506.01497; Lin et al. 2017, arXiv:1612.03144)."""
    sizes = tuple((size,) for size in _anchor_sizes(image_size))
    return FasterRCNN(
        Pyramid(encoder, (4, 8, 16, 32), width, LastLevelMaxPool()),
        rpn_anchor_generator=AnchorGenerator(sizes, (RATIOS,) * LEVELS),
        box_head=TwoMLPHead(width * 7**2, 4 * width),
        box_predictor=FastRCNNPredictor(4 * width, num_classes + 1),  # class 0 is the background
        box_score_thresh=MIN_SCORE,
        **_input(encoder, image_size),
    )


def faster_rcnn_c4(encoder: Encoder, num_classes: int, image_size: int, width: int) -> FasterRCNN:
    """Faster R-CNN as papers on self-supervision use it, such as He et al. 2020, arXiv:1911.05722 (Sec. 4.2).

    One map of stride 16; the last stage of the ResNet sees each box of it. `width` has nothing to decide.
    """
    return FasterRCNN(
        Trunk(encoder),
        rpn_anchor_generator=AnchorGenerator((tuple(_anchor_sizes(image_size)),), (RATIOS,)),
        box_roi_pool=MultiScaleRoIAlign(["0"], output_size=14, sampling_ratio=2),
        # a function, since the stage already is a part of the encoder: its tensors must not be there twice
        box_head=partial(_last_stage, encoder),
        box_predictor=FastRCNNPredictor(encoder.channels[-1], num_classes + 1),
        box_score_thresh=MIN_SCORE,
        **_input(encoder, image_size),
    )


def _last_stage(encoder: Encoder, boxes: Tensor) -> Tensor:
    """Features (R, D) of boxes (R, C, 14, 14)."""
    network: Any = encoder.model
    features: Tensor = network.layer4(boxes).mean((2, 3))
    return features


def retinanet(encoder: Encoder, num_classes: int, image_size: int, width: int) -> RetinaNet:
    """RetinaNet (Lin et al. 2017, arXiv:1708.02002)."""
    thirds = [2 ** (n / 3) for n in range(3)]
    sizes = tuple(tuple(size * third for third in thirds) for size in _anchor_sizes(image_size))
    return RetinaNet(
        Pyramid(encoder, (8, 16, 32), width, LastLevelP6P7(width, width)),
        num_classes,
        anchor_generator=AnchorGenerator(sizes, (RATIOS,) * LEVELS),
        score_thresh=MIN_SCORE,
        detections_per_img=MOST,
        **_input(encoder, image_size),
    )


def fcos(encoder: Encoder, num_classes: int, image_size: int, width: int) -> FCOS:
    """FCOS (Tian et al. 2019, arXiv:1904.01355). It has points instead of anchors: one for each place of a map."""
    return FCOS(
        Pyramid(encoder, (8, 16, 32), width, LastLevelP6P7(width, width)),
        num_classes,
        score_thresh=MIN_SCORE,
        detections_per_img=MOST,
        **_input(encoder, image_size),
    )


def _anchor_sizes(image_size: int) -> list[float]:
    """Sides of the anchors of each level: the same parts of an image whatever its size."""
    return [SMALLEST_ANCHOR * image_size / USUAL_SIZE * 2**n for n in range(LEVELS)]


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


Build = Callable[[Encoder, int, int, int], nn.Module]
HEADS: dict[str, Build] = {
    "faster-rcnn": faster_rcnn,
    "faster-rcnn-c4": faster_rcnn_c4,
    "retinanet": retinanet,
    "fcos": fcos,
}
WITH_BACKGROUND = ("faster-rcnn", "faster-rcnn-c4")  # whose class 0 is "nothing"
