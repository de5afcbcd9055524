"""Object detection: one of torchvision's detectors on an encoder's feature maps.

model = sslzoo.detector("byol-resnet18quarter-cifar10", classes=["RBC", "WBC", "Platelets"], image_size=240)
sslzoo.finetune(model, "BCCD/ImageSets/Main/train.txt", "BCCD/ImageSets/Main/val.txt", out="run")
sslzoo.load_model("run").predict("cells.jpg")
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import get_size
from tqdm import tqdm

from sslzoo import snippets, weights
from sslzoo.boxes import BoxSet, open_boxes
from sslzoo.data import ImageSet, open_images
from sslzoo.encoder import Encoder, build_network
from sslzoo.heads import Defaults, TaskCard, common
from sslzoo.heads.average_precision import AveragePrecision, packed
from sslzoo.heads.common import TaskModel
from sslzoo.heads.detection_networks import (
    HEADS,
    WIDTH_STEP,
    WITH_BACKGROUND,
    Settings,
    longer_side,
    pyramid_width,
)
from sslzoo.heads.detections import Detections, Found
from sslzoo.heads.reading import read_batches
from sslzoo.joint import JointSamples, Target
from sslzoo.modes import evaluating
from sslzoo.splits import random_split
from sslzoo.transforms import conversion, to_tensor

TASK = "detection"
IMAGE_SIZE = 800
PROPOSALS = 512
SHOWN_SCORE = 0.5  # of what `predict` returns
LEAST_PART = 0.7  # of each side of an image, that a training view shows
COLOURS = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2}  # random changes of training views, as parts

Positions = np.ndarray[Any, np.dtype[np.int64]]


class Detector(TaskModel):
    """An encoder and a detector. Made by `detector` or `load_model`.

    Args:
        encoder: Shared, not copied: training the detector trains it.
        num_classes: K, the background not counted.
        settings: How to build the rest.
        classes: Names of the K classes; None as long as nobody gave them names.
        encoder_id: Zoo id, or what else the encoder was loaded by; None for one without a name.
        finetuning: Settings and results of the run that trained it, as `finetune` writes them.

    Attributes:
        task: "detection".
        metric: What tells the best epoch: average precision.
        network: torchvision's detector; it holds the encoder.
        num_classes: K.
        settings: How it was built.
    """

    task = TASK
    metric = "ap"
    defaults = Defaults(lr=1e-3, lr_frozen=1e-3, batch_size=8)

    def __init__(
        self,
        encoder: Encoder,
        num_classes: int,
        settings: Settings,
        classes: Sequence[str] | None = None,
        *,
        encoder_id: str | None = None,
        finetuning: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(num_classes, classes, encoder_id, finetuning)
        self.settings = settings
        self.network: Any = HEADS[settings.head](encoder, num_classes, settings)
        self._first = int(settings.head in WITH_BACKGROUND)  # number of class 0 within the network
        self.freeze(False).eval()

    @property
    def encoder(self) -> Encoder:  # type: ignore[override]  # a part of `network`: its tensors must not be there twice
        """What finds features; a part of `network`."""
        found: Encoder = self.network.backbone.encoder
        return found

    def freeze(self, frozen: bool = True) -> Self:
        """Freeze the encoder, or let it learn again, but for what `settings` keeps frozen."""
        super().freeze(frozen)
        if not frozen and self.settings.frozen_stages:
            maps = partial(self.encoder.feature_maps, count=self.settings.frozen_stages)
            for parameter, used in common.parameters_of(self.encoder, maps):
                parameter.requires_grad_(not used)
        if self.settings.frozen_norms:
            for module in self.encoder.modules():
                if isinstance(module, _BatchNorm):
                    module.requires_grad_(False)
        return self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all parts; what is frozen stays in eval mode."""
        super().train(mode)
        for module in self.encoder.modules():
            own = module.parameters(recurse=False)
            if isinstance(module, _BatchNorm) and not any(parameter.requires_grad for parameter in own):
                module.eval()
        return self

    def forward(self, images: list[Tensor], targets: list[Target] | None = None) -> dict[str, Any]:
        """Learn from images, in train mode, or find boxes, in eval mode.

        Args:
            images: One (C, H, W) an image, uint8; of any sizes.
            targets: For each "boxes" (n, 4), left, top, right and bottom in pixels, and "labels" (n,).

        Returns:
            In train mode "loss", the sum of torchvision's losses, and each of them; in eval mode "detections", for each
            image "boxes" (n, 4), "scores" (n,) and "labels" (n,), best first.
        """
        scaled = [image / 255 for image in images]
        if self.training:
            assert targets is not None
            losses: dict[str, Tensor] = self.network(
                scaled, [{"boxes": t["boxes"], "labels": t["labels"] + self._first} for t in targets]
            )
            return {"loss": torch.stack(list(losses.values())).sum(), **losses}
        found = self.network(scaled)
        return {"detections": [{**one, "labels": one["labels"] - self._first} for one in found]}

    def predict(
        self,
        images: Any,
        *,
        min_score: float = SHOWN_SCORE,
        batch_size: int = 8,
        num_workers: int | None = None,
        progress: bool = False,
    ) -> Detections:
        """Find objects in images, where the model is; it is in eval mode while it does so.

        Args:
            images: A path, a folder, a list, or what else `open_images` takes.
            min_score: Of the boxes that are kept, 0 to 1.
            batch_size: Images a step.
            num_workers: Threads that read images beside this one; None chooses.
            progress: Show a progress bar.

        Returns:
            Boxes. Images that cannot be read are listed in its `skipped`.
        """
        found = open_images(images)
        boxes: list[Found] = []
        index: list[int] = []
        skipped: list[tuple[str, str]] = []
        device = next(self.parameters()).device
        with (
            evaluating(self),
            torch.inference_mode(),
            tqdm(total=len(found), unit="image", disable=not progress) as bar,
        ):
            for positions, pixels, bad in read_batches(found, self._pixels, batch_size, num_workers):
                if pixels:
                    out = self([image.to(device) for image in pixels])["detections"]
                    boxes += [Found.of(one, min_score) for one in out]
                index += positions
                skipped += bad
                bar.update(len(positions) + len(bad))
        return Detections(found.subset(index), self.classes, boxes, skipped)

    def _pixels(self, images: ImageSet, i: int) -> Tensor:
        """Image `i`, (C, H, W), uint8, with the channels that the encoder sees."""
        return to_tensor(conversion(self.encoder.config)(images[i]))

    def contents(self) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
        """See `TaskModel`."""
        return common.sslzoo_config(self.encoder), self.network.state_dict(), {"settings": asdict(self.settings)}

    def extra_repr(self) -> str:
        """One line about the detector, within PyTorch's own listing."""
        return f"{self.settings.head}, {super().extra_repr()}"

    # What finetune asks for: see the contract in heads/__init__.py

    def open_training(self, source: Any) -> BoxSet:
        """Images with boxes. Unnamed classes take their names from them.

        Raises:
            ValueError: No boxes, or other classes than the model's.
        """
        images = open_boxes(source)
        if self._classes is None:
            self.name_classes(images.classes, "images")
        return images.renumbered(self.classes)

    def open_validation(self, source: Any) -> BoxSet:
        """Images with boxes of the model's classes; not every class needs one."""
        return open_boxes(source, classes=self.classes)

    def remarks(self, images: BoxSet) -> list[str]:
        """What was wrong with the boxes, if anything was."""
        return images.remarks()

    def split(self, images: BoxSet, fraction: float, seed: int) -> tuple[Positions, Positions]:
        """Positions to train on and to validate on, at random."""
        return random_split(len(images), fraction, seed)

    def weigh(self, images: BoxSet, class_weights: str | Sequence[float] | None) -> None:
        """Refuse weights: torchvision's losses have none.

        Raises:
            ValueError: There are class weights.
        """
        if class_weights is not None:
            raise ValueError("A detector's loss has no class weights: leave class_weights out.")

    def samples(self, images: BoxSet, seed: int | None) -> Dataset[tuple[Tensor, Target]]:
        """Random views to train on: parts of images, mirrored or not, in other colours; with seed None whole images."""
        convert = conversion(self.encoder.config)
        if seed is None:
            return Whole(images, convert)
        return JointSamples(images, convert, training_view(self.settings.image_size), seed)

    def collate(self, samples: list[tuple[Tensor, Target]]) -> dict[str, Any]:
        """Images and boxes -> arguments of `forward`."""
        return {
            "images": [_plain(image) for image, _ in samples],
            "targets": [{key: _plain(value) for key, value in target.items()} for _, target in samples],
        }

    def validate(self, images: list[Tensor], targets: list[Target]) -> tuple[None, Tensor, Tensor]:
        """No loss, which torchvision has in train mode only; boxes found and true ones, as the meter has them."""
        found = self(images)["detections"]
        return (
            None,
            packed([f["boxes"] for f in found], [f["scores"] for f in found], [f["labels"] for f in found]),
            packed([t["boxes"] for t in targets], [t["crowd"] for t in targets], [t["labels"] for t in targets]),
        )

    def meter(self) -> AveragePrecision:
        """What counts right boxes."""
        return AveragePrecision(self.classes)


class Whole(Dataset[tuple[Tensor, Target]]):
    """Whole images, uint8 (C, H, W), with all their boxes and which of them are crowds."""

    def __init__(self, data: BoxSet, convert: Callable[[Image.Image], Image.Image]) -> None:
        self.data, self.convert = data, convert

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> tuple[Tensor, Target]:
        image, boxes = self.data.images[i], self.data.boxes[i]
        target = {"boxes": boxes.xyxy, "labels": boxes.labels, "crowd": boxes.crowd}
        return to_tensor(self.convert(image)), {key: torch.from_numpy(value) for key, value in target.items()}


class RandomPart(v2.Transform):  # type: ignore[misc]
    """Crop an image at random, keeping its shape.

    Args:
        least: Of each side, as a part of it.
    """

    def __init__(self, least: float) -> None:
        super().__init__()
        self.least = least

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Where the part lies, pixels."""
        height, width = get_size(next(x for x in flat_inputs if isinstance(x, tv_tensors.Image)))
        part = float(torch.empty(()).uniform_(self.least, 1))
        h, w = max(1, round(part * height)), max(1, round(part * width))
        top, left = (int(torch.randint(0, room + 1, ())) for room in (height - h, width - w))
        return {"top": top, "left": left, "height": h, "width": w}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Crop image and boxes."""
        return v2.functional.crop(inpt, **params)


def training_view(image_size: int) -> v2.Transform:
    """Random views: a part of an image, resized as the network does, mirrored half of the time, in other colours.

    Args:
        image_size: Shorter side, pixels.
    """
    # resized here since the network would do it after the colours, which take their time on large images
    resize = v2.Resize(image_size, max_size=longer_side(image_size), antialias=False)
    return v2.Compose([RandomPart(LEAST_PART), resize, v2.RandomHorizontalFlip(), v2.ColorJitter(**COLOURS)])


def detector(
    encoder: Encoder | str | Path,
    num_classes: int | None = None,
    *,
    classes: Sequence[str] | None = None,
    head: str = "faster-rcnn",
    image_size: int = IMAGE_SIZE,
    width: int | None = None,
    proposals: int = PROPOSALS,
    frozen_stages: int = 0,
    frozen_norms: bool = False,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Detector:
    """Put one of torchvision's detectors on an encoder.

    Args:
        encoder: Zoo id, model folder, or an `Encoder`, which then is part of the detector and trained with it.
        num_classes: How many classes, the background not counted; not needed with `classes`.
        classes: Their names. Without them `finetune` takes the names that the training images have.
        head: "faster-rcnn" (on a feature pyramid), "faster-rcnn-c4" (the papers', ResNets only), "retinanet" or "fcos".
        image_size: Shorter side, in pixels, that images are resized to; the longer one is at most 5/3 of that. Anchors
            are in proportion.
        width: Channels of the feature pyramid; a multiple of 32. None takes 256, less on a thin encoder.
        proposals: Boxes an image that the second stage of Faster R-CNN learns from in a step. The papers' 512 are half
            of the cost of a step on a CPU, where 128 will do.
        frozen_stages: So many of the encoder's feature maps, counted from the finest, do not learn: with a ResNet 1 is
            the stem, 2 the stem and layer1, as Detectron has it.
        frozen_norms: Keep batch norms of the encoder as they are, statistics and all: for batches of an image or two.
            On BCCD, with batches of four, it was clearly better to let them learn.
        seed: Of the detector's own weights, which start at random.
        device: Where to put it.

    Raises:
        ValueError: Neither number nor names, a name given twice, an unknown head, an architecture without a pyramid of
            feature maps, or a setting out of its range.
        sslzoo.zoo.UnknownModelError: No such encoder.
        sslzoo.weights.WeightsError: Its files are damaged.
    """
    k = common.count_classes(num_classes, classes)
    if k < 1:
        raise ValueError(f"A detector needs at least one class, got {k}.")
    if head not in HEADS:
        raise ValueError(f"Unknown head {head!r}. There are: {', '.join(HEADS)}.")
    if not isinstance(image_size, int) or image_size < 32:
        raise ValueError(f"image_size is one number, of at least 32 pixels, got {image_size}: the shorter side.")
    if width is not None and (width < 1 or width % WIDTH_STEP):
        raise ValueError(f"width must be a multiple of {WIDTH_STEP}, got {width}.")
    found, name = common.opened(encoder)
    if not 0 <= frozen_stages <= len(found.channels):
        raise ValueError(f"frozen_stages must be 0 to {len(found.channels)} for {found.arch}, got {frozen_stages}.")
    settings = Settings(head, image_size, width or pyramid_width(found), proposals, frozen_stages, frozen_norms)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Detector(found, k, settings, classes, encoder_id=name).to(device)


def build(
    encoder: Encoder | str | Path, source: Any, *, head: str = "faster-rcnn", image_size: int = IMAGE_SIZE,
    proposals: int = PROPOSALS, seed: int = 0,
) -> Detector:  # fmt: skip
    """Make a detector for the classes of images with boxes."""
    return detector(
        encoder,
        classes=open_boxes(source).classes,
        head=head,
        image_size=image_size,
        proposals=proposals,
        seed=seed,
    )


def load(folder: Path, *, device: torch.device | str = "cpu") -> Detector:
    """Load a saved detector: see `sslzoo.load_model`."""
    config = weights.read_model_config(folder)
    with common.described(folder, "detector"):
        own, settings = common.encoder_config(config), Settings(**config["sslzoo"]["settings"])
        network = build_network(own["architecture"], own["pretrained_cfg"], own["model_args"], seed=0)
        k = len(config["label_names"])
        made = Detector(Encoder(network, own), k, settings, **common.saved(config))
    made.network.load_state_dict(weights.read_state(folder, made.network.state_dict()))
    return made.to(device)


def card(config: Mapping[str, Any], place: snippets.Place) -> TaskCard:
    """What a detector with this config.json says of itself on a model card."""
    settings = Settings(**config["sslzoo"]["settings"])
    return TaskCard(
        what=f"Object detector: {len(config['label_names'])} classes, images whose shorter side is resized to "
        f"{settings.image_size} pixels. torchvision's {settings.head} on",
        snippets=snippets.detector_snippets(place),
        limit="It finds objects that are about as large, as parts of the image, as those that it learned from.",
        pipeline_tag="object-detection",
        library="sslzoo",
        tags=["sslzoo", "object-detection"],
    )


def _plain(tensor: Tensor) -> Tensor:
    """A tensor that is nothing more, such as a tv_tensor."""
    return tensor.as_subclass(Tensor)
