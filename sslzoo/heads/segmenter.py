"""Semantic segmentation: a decoder on an encoder's feature maps, which gives every pixel a class.

model = sslzoo.segmenter("byol-resnet18quarter-cifar10", classes=["road", "car"], head="deeplabv3")
sslzoo.finetune(model, "scenes/train", "scenes/val", out="run")     # folders with images/ and masks/
sslzoo.load_model("run").predict("photo.jpg").save("photo-classes.png")
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sslzoo import joint, snippets, weights
from sslzoo.class_table import Colour, palette
from sslzoo.data import ImageSet, open_images
from sslzoo.encoder import Encoder, build_network
from sslzoo.heads import Defaults, TaskCard, common, decoders, segmentation_losses
from sslzoo.heads.common import TaskModel, listed
from sslzoo.heads.reading import read_batches
from sslzoo.heads.segmentations import PackedMasks, Segmentations
from sslzoo.joint import IGNORE, JointSamples, Size, Target
from sslzoo.masks import Mask, MaskSet, open_masks
from sslzoo.modes import evaluating
from sslzoo.splits import random_split
from sslzoo.transforms import conversion, normalise

Labels = np.ndarray[Any, np.dtype[np.int64]]
TASK = "segmentation"
IMAGE_SIZE = 256
AUXILIARY_WEIGHT = 0.4  # of the second decoder's loss: Zhao et al. 2017, https://arxiv.org/abs/1612.01105, Sec. 3.3


@dataclass(frozen=True)
class Settings:
    """How a segmenter is built.

    Attributes:
        head: A name of `decoders.HEADS`.
        output_stride: Of the coarsest maps.
        image_size: Height and width that images are scaled to fit into, pixels.
        loss: See `segmentation_losses`.
        auxiliary: Whether a second decoder helps training.
    """

    head: str
    output_stride: int
    image_size: Size
    loss: str
    auxiliary: bool


class Segmenter(TaskModel):
    """An encoder and a decoder. Made by `segmenter` or `load_model`.

    Args:
        encoder: As `decoders.prepared` returns it. Not copied: training the segmenter trains it.
        num_classes: K.
        settings: How to build the rest.
        classes: Names of the K classes; None as long as nobody gave them names.
        colours: Of the classes, in pictures and mask files; None takes Pascal VOC's.
        encoder_id: Zoo id, or what else the encoder was loaded by; None for one without a name.
        finetuning: Settings and results of the run that trained it, as `finetune` writes them.

    Attributes:
        task: "segmentation".
        metric: Of the figures that `meter` counts, the one that tells the best epoch.
    """

    task = TASK
    metric = "miou"
    defaults = Defaults(lr=1e-3, lr_frozen=1e-3, batch_size=8)

    def __init__(
        self,
        encoder: Encoder,
        num_classes: int,
        settings: Settings,
        classes: Sequence[str] | None = None,
        colours: Sequence[Colour] | None = None,
        *,
        encoder_id: str | None = None,
        finetuning: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(num_classes, classes, encoder_id, finetuning)
        self.encoder, self.settings = encoder, settings
        self.decoder = decoders.HEADS[settings.head].build(encoder, num_classes)
        self.auxiliary = decoders.auxiliary(encoder, num_classes) if settings.auxiliary else None
        self.loss = segmentation_losses.build(settings.loss)
        self.colours = _checked(colours, num_classes)
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", None, persistent=False)  # (K,) of the loss
        self.eval()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Score the classes at every pixel; the names of the arguments are those of transformers.

        Args:
            pixel_values: (B, C, H, W), normalised; of any height and width, and padded inside to multiples of 32.
            labels: (B, H, W) class numbers, 255 where a pixel does not count.

        Returns:
            "logits" (B, K, H, W) and, with labels, "loss".
        """
        height, width = pixel_values.shape[-2:]
        images = decoders.padded(pixel_values)
        maps = self.encoder.feature_maps(images)
        logits = decoders.enlarged(self.decoder(images, maps), images.shape[-2:])[..., :height, :width]
        if labels is None:
            return {"logits": logits}
        loss = self.loss(logits, labels, self.class_weights)
        if self.auxiliary is not None and self.training:
            second = decoders.enlarged(self.auxiliary(maps[-2]), images.shape[-2:])[..., :height, :width]
            loss = loss + AUXILIARY_WEIGHT * self.loss(second, labels, self.class_weights)
        return {"loss": loss, "logits": logits}

    def predict(
        self, images: Any, *, batch_size: int = 8, num_workers: int | None = None, progress: bool = False
    ) -> Segmentations:
        """Give every pixel of images a class, where the model is; it is in eval mode while it does so.

        Each image is scaled to fit into `settings.image_size`, and its scores are scaled back to its own size.

        Args:
            images: A path, a folder, a list, or what else `open_images` takes; of any sizes.
            batch_size: Images a step.
            num_workers: Threads that read images beside this one; None chooses.
            progress: Show a progress bar.

        Returns:
            Masks. Images that cannot be read are listed in its `skipped`.
        """
        found = open_images(images)
        masks, kept, skipped = PackedMasks(), [], []
        with evaluating(self), torch.inference_mode(), tqdm(total=len(found), disable=not progress) as bar:
            for index, views, bad in read_batches(found, self._view, batch_size, num_workers):
                kept += index
                skipped += bad
                bar.update(len(index) + len(bad))
                for mask in self._masks(views):
                    masks.append(mask)
        return Segmentations(found.subset(kept), self.classes, self.colours, masks, skipped)

    def _view(self, images: ImageSet, i: int) -> "_View":
        """Image `i` as the network sees it."""
        image, config, box = images[i], self.encoder.config, self.settings.image_size
        size = image.height, image.width
        pixels = joint.evaluation_view(box, config)(joint.as_pixels(conversion(config)(image)))
        return _View(pixels.as_subclass(Tensor), joint.fitted(size, box), size)

    def _masks(self, views: Sequence["_View"]) -> list[Mask]:
        """The class of each pixel of each image, in the image's own size."""
        if not views:
            return []
        logits = self(self._inputs(torch.stack([view.pixels for view in views])))["logits"]
        contents = [scores[:, : v.content[0], : v.content[1]] for v, scores in zip(views, logits, strict=True)]
        return [decoders.best_classes(c, v.size).cpu().numpy() for v, c in zip(views, contents, strict=True)]

    def _inputs(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> what `forward` takes, where the model is."""
        cfg, like = self.encoder.config["pretrained_cfg"], next(self.parameters())
        return normalise(images.to(like.device), cfg["mean"], cfg["std"]).to(like.dtype)

    def contents(self) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
        """See `TaskModel`."""
        own = {"colours": [list(colour) for colour in self.colours], "settings": asdict(self.settings)}
        return common.sslzoo_config(self.encoder), self.state_dict(), own

    def extra_repr(self) -> str:
        """One line about the segmenter, within PyTorch's own listing."""
        return f"{self.settings.head}, {super().extra_repr()}"

    # What finetune asks for: see the contract in heads/__init__.py

    def open_training(self, source: Any) -> MaskSet:
        """Images with masks. Unnamed classes take their names and colours from them.

        Raises:
            ValueError: Other classes than the model's, or masks in which nothing counts.
        """
        found = open_masks(source)
        if self._classes is None and found.classes is not None:
            self.name_classes(found.classes, "masks")
            self.colours = _checked(found.colours, self.num_classes)
        return self._renumbered(found, "training")

    def open_validation(self, source: Any) -> MaskSet:
        """Images with masks of the model's classes; not every class needs to be there."""
        return self._renumbered(open_masks(source), "validation")

    def _renumbered(self, found: MaskSet, part: str) -> MaskSet:
        if found.classes is None:  # numbers
            if (highest := found.highest()) >= self.num_classes:
                raise ValueError(
                    f"The {part} masks have values up to {highest}, the model's {self.num_classes} classes are 0 to "
                    f"{self.num_classes - 1}, and {IGNORE} where nothing counts."
                )
            return found
        if found.classes == self.classes:
            return found
        if strange := [name for name in found.classes if name not in self.classes]:
            raise ValueError(
                f"The {part} masks have classes {listed(strange)}; the model's are {listed(self.classes)}."
            )
        return found.renumbered(self.classes)

    def remarks(self, images: MaskSet) -> list[str]:
        """Images without a mask, and classes without a pixel."""
        lines = []
        if images.left_out:
            lines.append(f"left out, without a mask: {len(images.left_out):,} images, such as {images.left_out[0]}")
        seen = images.counts().sum(axis=0)[: self.num_classes]
        if missing := [name for name, count in zip(self.classes, seen, strict=True) if count == 0]:
            lines.append(f"no pixel in {len(images):,} masks of {listed(missing)}")
        return lines

    def split(self, images: MaskSet, fraction: float, seed: int) -> tuple[Labels, Labels]:
        """Positions to train on and to validate on, at random."""
        return random_split(len(images), fraction, seed)

    def weigh(self, images: MaskSet, class_weights: str | Sequence[float] | None) -> None:
        """Set how much each class counts in the loss: None, "balanced" or K numbers.

        Balanced is median frequency over frequency, where a class is there. Eigen & Fergus 2015,
        https://arxiv.org/abs/1411.4734, Sec. 6.3.2, with frequencies over all images.
        """
        if class_weights == "balanced":
            counts = images.counts().sum(axis=0)[: self.num_classes]
            middle = float(np.median(counts[counts > 0]))
            class_weights = list(map(float, np.where(counts > 0, middle / np.maximum(counts, 1), 0)))
        device = next(self.parameters()).device
        self.class_weights = common.checked_weights(class_weights, self.num_classes, device)

    def samples(self, images: MaskSet, seed: int | None) -> JointSamples:
        """Random views to train on, or with seed None each image scaled to fit and padded."""
        view = joint.evaluation_view if seed is None else joint.training_view
        config = self.encoder.config
        return JointSamples(images, conversion(config), view(self.settings.image_size, config), seed)

    def collate(self, samples: list[tuple[Tensor, Target]]) -> dict[str, Tensor]:
        """Views and masks -> arguments of `forward`."""
        cfg = self.encoder.config["pretrained_cfg"]
        images = torch.stack([image.as_subclass(Tensor) for image, _ in samples])
        masks = torch.stack([target["masks"].as_subclass(Tensor) for _, target in samples])
        return {"pixel_values": normalise(images, cfg["mean"], cfg["std"]), "labels": masks.long()}

    def validate(self, pixel_values: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, a confusion matrix of each image, (B, K, K), and their numbers of pixels that count, (B,)."""
        out = self(pixel_values, labels)
        matrices = confusion(out["logits"].argmax(dim=1), labels, self.num_classes)
        return out["loss"], matrices, matrices.sum(dim=(1, 2))

    def meter(self) -> "Overlap":
        """What counts pixels by true and predicted class."""
        return Overlap(self.classes)


def confusion(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Count pixels by true (rows) and predicted class (columns): (B, H, W) twice -> (B, K, K)."""
    image = torch.arange(len(labels), device=labels.device).view(-1, 1, 1)
    cell = (image * num_classes + labels) * num_classes + predictions
    counts = torch.bincount(cell[labels != IGNORE], minlength=len(labels) * num_classes**2)
    return counts.view(-1, num_classes, num_classes)


class Overlap:
    """Counts pixels: intersection over union (Jaccard index) of each class, and pixel accuracy.

    Args:
        classes: Names of the K classes.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = list(classes)
        self.matrix = torch.zeros(len(classes), len(classes), dtype=torch.int64)  # true × predicted

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Add the confusion matrices of some images, (B, K, K)."""
        self.matrix += predictions.sum(dim=0).cpu()

    def compute(self) -> dict[str, float]:
        """Mean IoU over classes that are there or were predicted, "iou/CLASS" of each of them, and pixel accuracy.

        Raises:
            ValueError: No pixel counts.
        """
        if not self.matrix.any():
            raise ValueError(
                f"No pixel of the masks is of a class: all are {IGNORE}, which does not count. "
                "Check that masks hold the classes' numbers, or name their colours in a class file."
            )
        right = self.matrix.diagonal().double()
        union = self.matrix.sum(0) + self.matrix.sum(1) - self.matrix.diagonal()
        there = union > 0
        iou = right[there] / union[there]
        each = {f"iou/{self.classes[k]}": float(v) for k, v in zip(there.nonzero()[:, 0].tolist(), iou, strict=True)}
        accuracy = right.sum() / self.matrix.sum()
        return {"miou": float(iou.mean()), "pixel_accuracy": float(accuracy), **each}


@dataclass(frozen=True, eq=False)
class _View:
    """An image as the network sees it: uint8 (C, H, W), the height and width of what is not padding, and its own."""

    pixels: Tensor
    content: Size
    size: Size


def segmenter(
    encoder: Encoder | str | Path,
    num_classes: int | None = None,
    *,
    classes: Sequence[str] | None = None,
    colours: Sequence[Colour] | None = None,
    head: str = "deeplabv3",
    output_stride: int | None = None,
    image_size: int | Size = IMAGE_SIZE,
    loss: str = "cross_entropy",
    auxiliary: bool = False,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Segmenter:
    """Put a decoder on an encoder. Its weights are random, by the seed.

    Args:
        encoder: Zoo id, model folder, or an `Encoder`. One whose maps have the stride that is asked for becomes a part
            of the segmenter and is trained with it; of others a dilated copy does.
        num_classes: How many classes; not needed with `classes`.
        classes: Their names. Without them `finetune` takes the names that the training masks have.
        colours: Of the classes, (red, green, blue) each; None takes those of the training masks, or Pascal VOC's.
        head: "fcn", "fcn8s", "deeplabv3", "deeplabv3plus", "unet", "fpn", "pspnet" or "upernet".
        output_stride: Of the coarsest maps, for heads that work with dilated convolutions; None takes the head's usual.
        image_size: Height and width (or both) that images are scaled to fit into, keeping their shape; training sees
            views of this size.
        loss: "cross_entropy", "dice", "focal", or a sum of these such as "cross_entropy+dice".
        auxiliary: Train a second decoder on the maps before the coarsest, as torchvision's `aux_loss`.
        seed: Of the decoder's weights.
        device: Where to put it.

    Raises:
        ValueError: Neither number nor names, a name given twice, no such head or loss, or an encoder that has not the
            maps that the head needs.
        sslzoo.zoo.UnknownModelError: No such encoder.
        sslzoo.weights.WeightsError: Its files are damaged.
    """
    k = common.count_classes(num_classes, classes)
    if not 2 <= k <= IGNORE:
        raise ValueError(f"A segmenter needs 2 to {IGNORE} classes, got {k}.")
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if min(height, width) < 32:
        raise ValueError(f"image_size must be at least 32 pixels either way, got {height}×{width}.")
    found, name = common.opened(encoder)
    found = decoders.prepared(found, head, output_stride)
    settings = Settings(head, found.reductions[-1], (height, width), loss, auxiliary)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return Segmenter(found, k, settings, classes, colours, encoder_id=name).to(device)


def build(
    encoder: Encoder | str | Path,
    source: Any,
    *,
    head: str = "deeplabv3",
    output_stride: int | None = None,
    image_size: int | Size = IMAGE_SIZE,
    loss: str = "cross_entropy",
    auxiliary: bool = False,
    seed: int = 0,
) -> Segmenter:
    """Make a segmenter for the classes of masks; see `segmenter` for the options."""
    found = open_masks(source)
    names = found.classes or [str(number) for number in range(found.highest() + 1)]
    if len(names) < 2:
        raise ValueError(
            f"All masks are of one class, {listed(names)}; {IGNORE} means that a pixel counts nowhere. If the masks "
            "are black and white, put a file classes.txt beside them: 'background 0 0 0' and 'object 255 255 255'."
        )
    return segmenter(
        encoder, classes=names, colours=found.colours, head=head, output_stride=output_stride, image_size=image_size,
        loss=loss, auxiliary=auxiliary, seed=seed,
    )  # fmt: skip


def load(folder: Path, *, device: torch.device | str = "cpu") -> Segmenter:
    """Load a saved segmenter: see `sslzoo.load_model`."""
    config = weights.read_model_config(folder)
    with common.described(folder, "segmenter"), torch.random.fork_rng(devices=[]):  # its random weights are replaced
        block, own = config["sslzoo"], common.encoder_config(config)
        settings = Settings(**{**block["settings"], "image_size": tuple(block["settings"]["image_size"])})
        network = build_network(own["architecture"], own["pretrained_cfg"], own["model_args"], seed=0)
        colours = [tuple(colour) for colour in block["colours"]]
        k = len(config["label_names"])
        model = Segmenter(Encoder(network, own), k, settings, colours=colours, **common.saved(config))
    model.load_state_dict(weights.read_state(folder, model.state_dict()))
    return model.to(device)


def card(config: Mapping[str, Any], place: snippets.Place) -> TaskCard:
    """What a segmenter with this config.json says of itself on a model card."""
    settings = config["sslzoo"]["settings"]
    height, width = settings["image_size"]
    return TaskCard(
        what=f"Semantic segmentation: {len(config['label_names'])} classes, images scaled to fit into "
        f"{height}×{width} pixels. The head {settings['head']} ({decoders.HEADS[settings['head']].paper}) at output "
        f"stride {settings['output_stride']} on",
        snippets=snippets.segmenter_snippets(place),
        limit="It gives every pixel one of its classes, also pixels of none of them.",
        pipeline_tag="image-segmentation",
        library="sslzoo",
        tags=["sslzoo", "image-segmentation", "semantic-segmentation"],
    )


def _checked(colours: Sequence[Colour] | None, num_classes: int) -> list[Colour]:
    """Colours as they are, or Pascal VOC's.

    Raises:
        ValueError: Not one a class.
    """
    if colours is None:
        return palette(num_classes)
    if len(colours) != num_classes:
        raise ValueError(f"{num_classes} classes need {num_classes} colours, got {len(colours)}.")
    return [(int(red), int(green), int(blue)) for red, green, blue in colours]
