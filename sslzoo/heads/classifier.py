"""Image classification: one linear layer on an encoder's features.

model = sslzoo.classifier("byol-resnet18quarter-cifar10", classes=["cat", "dog"])
sslzoo.finetune(model, "photos", out="run")
sslzoo.load_model("run").predict("photo.jpg")
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from sslzoo import snippets, weights
from sslzoo.data import ImageSet, open_images
from sslzoo.encoder import Encoder
from sslzoo.features import embed_readable
from sslzoo.heads import Defaults, TaskCard, common, timm_layout
from sslzoo.heads.common import TaskModel, listed
from sslzoo.heads.predictions import Predictions
from sslzoo.splits import stratified_split
from sslzoo.transforms import normalise, to_tensor, train_view

Labels = np.ndarray[Any, np.dtype[np.int64]]
TASK = "classification"


class Classifier(TaskModel):
    """An encoder and a linear layer. Made by `classifier` or `load_model`.

    Args:
        encoder: Shared, not copied: training the classifier trains it.
        head: From its features to K logits.
        classes: Names of the K classes; None as long as nobody gave them names.
        encoder_id: Zoo id, or what else the encoder was loaded by; None for one without a name.
        finetuning: Settings and results of the run that trained it, as `finetune` writes them.

    Attributes:
        task: "classification".
        metric: Of the figures that `meter` counts, the one that tells the best epoch.
    """

    task = TASK
    defaults = Defaults(lr=1e-3, lr_frozen=1e-2, batch_size=32)
    on_maps = False

    def __init__(
        self,
        encoder: Encoder,
        head: nn.Linear,
        classes: Sequence[str] | None = None,
        *,
        encoder_id: str | None = None,
        finetuning: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(head.out_features, classes, encoder_id, finetuning)
        self.encoder = encoder
        self.head = head
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", None, persistent=False)  # (K,) of the loss
        self.eval()

    @property
    def transform(self) -> Callable[[Image.Image], Tensor]:
        """PIL image -> input of `forward`, (C, H, W): the encoder's."""
        return self.encoder.transform

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Classify images; the names of the arguments are those of transformers.

        Args:
            pixel_values: (B, C, H, W), normalised as `transform` does it.
            labels: (B,) class numbers.

        Returns:
            "logits" (B, K) and, with labels, "loss", the mean cross-entropy.
        """
        logits = self.head(self.encoder(pixel_values))
        if labels is None:
            return {"logits": logits}
        return {"loss": F.cross_entropy(logits, labels, weight=self.class_weights), "logits": logits}

    def predict(
        self, images: Any, *, batch_size: int = 64, num_workers: int | None = None, progress: bool = False
    ) -> Predictions:
        """Classify images, where the model is; it is in eval mode while it does so.

        Args:
            images: A path, a folder, a list, or what else `open_images` takes.
            batch_size: Images a step.
            num_workers: Threads that read images beside this one; None chooses.
            progress: Show a progress bar.

        Returns:
            Probabilities. Images that cannot be read are listed in its `skipped`.
        """
        found = open_images(images)
        X, index, skipped = embed_readable(
            self.encoder, found, batch_size=batch_size, num_workers=num_workers, progress=progress
        )
        with torch.inference_mode():
            probabilities = self.head(torch.from_numpy(X).to(self.head.weight)).float().softmax(1).cpu().numpy()
        return Predictions(found.subset(index), self.classes, probabilities, skipped)

    def contents(self) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
        """See `TaskModel`: timm and transformers (`AutoModelForImageClassification`) read the folder too."""
        return *timm_layout.to_timm(self.encoder, self.head), {}

    # What finetune asks for: see the contract in heads/__init__.py

    @property
    def metric(self) -> str:
        """What tells the best epoch; where classes are weighed, all count alike here too."""
        return "accuracy" if self.class_weights is None else "balanced_accuracy"

    def open_training(self, source: Any) -> ImageSet:
        """Labelled images with a label of every class. Unnamed classes take their names from the images.

        Raises:
            ValueError: No labels, an empty class, or other classes than the model's.
        """
        images = _labelled(source, "training")
        if self._classes is None and images.classes is not None:
            self.name_classes(images.classes, "images")
        images = _relabelled(images, self.classes, "training")
        check_every_class(images)
        return images

    def open_validation(self, source: Any) -> ImageSet:
        """Labelled images of the model's classes; not every class needs one."""
        return _relabelled(_labelled(source, "validation"), self.classes, "validation")

    def remarks(self, images: ImageSet) -> list[str]:
        """None: what is odd about labels of images is an error."""
        return []

    def split(self, images: ImageSet, fraction: float, seed: int) -> tuple[Labels, Labels]:
        """Positions to train on and to validate on: the same fraction of every class."""
        return stratified_split(np.array(self.classes)[images.labels], fraction, seed)

    def weigh(self, images: ImageSet, class_weights: str | Sequence[float] | None) -> None:
        """Set how much each class counts in the loss: None, "balanced" (by the inverse of its count) or K numbers."""
        if class_weights == "balanced":
            counts = _counts(images)
            class_weights = list(map(float, len(images) / (self.num_classes * np.maximum(counts, 1))))
        self.class_weights = common.checked_weights(class_weights, self.num_classes, self.head.weight.device)

    def samples(self, images: ImageSet, seed: int | None) -> "Samples":
        """Random views to train on, or with seed None each image as `transform` has it."""
        return Samples(images, self.encoder, seed)

    def collate(self, samples: list[tuple[Tensor, int]]) -> dict[str, Tensor]:
        """Images and labels -> arguments of `forward`."""
        images = torch.stack([image for image, _ in samples])
        if images.dtype == torch.uint8:  # views: normalised together, which takes a tenth of the time
            cfg = self.encoder.config["pretrained_cfg"]
            images = normalise(images, cfg["mean"], cfg["std"])
        return {"pixel_values": images, "labels": torch.tensor([label for _, label in samples])}

    def validate(self, pixel_values: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, the most probable class of each image, (B,), and its true one, (B,)."""
        out = self(pixel_values, labels)
        return out["loss"], out["logits"].argmax(dim=1), labels

    def meter(self) -> "Accuracy":
        """What counts right answers."""
        return Accuracy(self.num_classes)


class Accuracy:
    """Counts right answers, class by class.

    Args:
        num_classes: K.
    """

    def __init__(self, num_classes: int) -> None:
        self.seen, self.right = torch.zeros(2, num_classes, dtype=torch.int64)

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Add a batch: predicted and true class numbers, (B,) each."""
        predictions, targets = predictions.cpu(), targets.cpu()
        self.seen += torch.bincount(targets, minlength=len(self.seen))
        self.right += torch.bincount(targets[predictions == targets], minlength=len(self.seen))

    def compute(self) -> dict[str, float]:
        """Accuracy, and its mean over the classes that the images have."""
        there = self.seen > 0
        by_class = self.right[there].double() / self.seen[there]
        accuracy = self.right.sum().double() / self.seen.sum()
        return {"accuracy": float(accuracy), "balanced_accuracy": float(by_class.mean())}


class Samples(Dataset[tuple[Tensor, int]]):
    """Images, (C, H, W), with their labels: normalised as the network takes them, or random views of them, uint8.

    A view is drawn from random numbers seeded by (seed, epoch, position): views depend neither on workers nor on
    processes, and a run that goes on sees what it would have seen.
    """

    def __init__(self, images: ImageSet, encoder: Encoder, seed: int | None) -> None:
        self.images, self.seed, self.epoch = images, seed, 0
        # not the encoder: workers need no copy of it
        self.transform, self.view = encoder.transform, train_view(encoder.config)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        assert self.images.labels is not None
        image, label = self.images[i], int(self.images.labels[i])
        if self.seed is None:
            return self.transform(image), label
        return to_tensor(self.view(image, Random(f"{self.seed} {self.epoch} {i}"))), label

    def set_epoch(self, epoch: int) -> None:
        """Take the views of this epoch, 0 being the first."""
        self.epoch = epoch


def classifier(
    encoder: Encoder | str | Path,
    num_classes: int | None = None,
    *,
    classes: Sequence[str] | None = None,
    device: torch.device | str = "cpu",
) -> Classifier:
    """Put a classifier on an encoder. It starts at zero: every class is equally probable, and nothing is random.

    Args:
        encoder: Zoo id, model folder, or an `Encoder`, which then is part of the classifier and trained with it.
        num_classes: How many classes; not needed with `classes`.
        classes: Their names. Without them `finetune` takes the names that the training images have.
        device: Where to put it.

    Raises:
        ValueError: Neither number nor names, fewer than two classes, a name given twice, or an architecture whose
            classifier timm builds in another way.
        sslzoo.zoo.UnknownModelError: No such encoder.
        sslzoo.weights.WeightsError: Its files are damaged.
    """
    k = common.count_classes(num_classes, classes)
    if k < 2:
        raise ValueError(f"A classifier needs at least two classes, got {k}.")
    found, name = common.opened(encoder)
    timm_layout.check(found, k)
    head = nn.Linear(found.num_features, k)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return Classifier(found, head, classes, encoder_id=name).to(device)


def build(encoder: Encoder | str | Path, source: Any) -> Classifier:
    """Make a classifier for the classes of labelled images."""
    images = _labelled(source, "training")
    names = images.classes or [str(label) for label in range(int(images.labels.max()) + 1)]  # type: ignore[union-attr]
    return classifier(encoder, classes=names)


def load(folder: Path, *, device: torch.device | str = "cpu") -> Classifier:
    """Load a saved classifier: see `sslzoo.load_model`."""
    config = weights.read_model_config(folder)
    with common.described(folder, "classifier"):
        state = weights.read_state(folder, timm_layout.timm_network(config).state_dict())
        encoder, head = timm_layout.from_timm(common.encoder_config(config), state)
        return Classifier(encoder, head, **common.saved(config)).to(device)


def card(config: Mapping[str, Any], place: snippets.Place) -> TaskCard:
    """What a classifier with this config.json says of itself on a model card."""
    size = config["pretrained_cfg"]["input_size"]
    return TaskCard(
        what=f"Image classifier: {len(config['label_names'])} classes, images of {size[1]}×{size[2]} pixels. "
        "A linear layer on",
        snippets=snippets.classifier_snippets(config, place),
        limit="It names one of its classes for every image, also for images of none of them.",
        pipeline_tag="image-classification",
        library="timm",  # see card.py
        tags=["timm", "transformers", "sslzoo", "image-classification"],
    )


def check_every_class(images: ImageSet) -> None:
    """Raise a ValueError if some class has no image."""
    missing = [name for name, count in zip(images.classes or (), _counts(images), strict=True) if count == 0]
    if missing:
        raise ValueError(f"No training images of {listed(missing)}. Add some, or leave the class out of the model.")


def _counts(images: ImageSet) -> Labels:
    assert images.labels is not None
    return np.bincount(images.labels, minlength=len(images.classes or ()))


def _labelled(source: Any, part: str) -> ImageSet:
    """Open labelled images of at least two classes, none of them an empty folder."""
    images = open_images(source)
    where = f" in {images.root}" if images.root else ""
    if images.labels is None:
        raise ValueError(
            f"The {part} images{where} have no labels. Needed is a folder with a sub-folder for every class, a .csv "
            "file of path and label, an .npz file with 'images' and 'labels', or a data set with a label column."
        )
    if images.empty:
        raise ValueError(f"No images{where} for {listed(images.empty)}. Put images there, or remove the folder.")
    if part == "training" and len(np.unique(images.labels)) < 2:
        only = images.classes[images.labels[0]] if images.classes else images.labels[0]
        raise ValueError(f"All {len(images):,} training images{where} are of one class, {only}. Two are needed.")
    return images


def _relabelled(images: ImageSet, classes: list[str], part: str) -> ImageSet:
    """Number the labels as the model does, by name if the images' classes have names."""
    assert images.labels is not None
    used = np.unique(images.labels).tolist()
    name_of = {label: images.classes[label] if images.classes else str(label) for label in used}
    known = classes if images.classes else [str(i) for i in range(len(classes))]
    if strange := [name for name in name_of.values() if name not in known]:
        raise ValueError(f"The {part} images have labels {listed(strange)}; the model's classes are {listed(known)}.")
    number_of = {label: known.index(name) for label, name in name_of.items()}
    part_of = images.subset(range(len(images)))
    part_of.labels = np.array([number_of[label] for label in images.labels.tolist()], dtype=np.int64)
    part_of.classes = classes
    return part_of
