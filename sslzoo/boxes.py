"""Images with boxes: VOC, COCO and YOLO files, arrays and Hugging Face datasets, opened without decoding a pixel.

images = open_boxes("BCCD/ImageSets/Main/train.txt")     # or a folder, a COCO .json file, ...
images[0], images.boxes[0].xyxy, images.boxes[0].labels, images.classes
"""

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors

from sslzoo import box_files
from sslzoo.box_files import Marked, RawBox
from sslzoo.data import EmptyDatasetError, ImageSet, UnreadableImageError, open_images
from sslzoo.joint import MarkedImages, Target

OUTSIDE = 0.01  # pixels beyond the image that are rounding
FORMATS = {
    "xyxy": lambda a, b, c, d: (a, b, c, d),
    "xywh": lambda a, b, c, d: (a, b, a + c, b + d),
}

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Boxes:
    """Boxes in one image.

    Attributes:
        xyxy: (n, 4) float32: left, top, right and bottom edge in pixels, 0 being the image's own edge.
        labels: (n,) int64 class numbers.
        crowd: (n,) bool. Crowds (COCO) and difficult objects (VOC): not learned, and neither right nor wrong to find.
    """

    xyxy: Array
    labels: Array
    crowd: Array

    def __len__(self) -> int:
        return len(self.labels)


NONE = Boxes(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.bool_))


class BoxSet(MarkedImages):
    """Images with boxes; images are read when asked for. Made by `open_boxes`; it pickles.

    Attributes:
        images: The images.
        boxes: One `Boxes` an image; an image without any belongs to the set like all others.
        classes: Names of the labels 0, 1, ...
        dropped: Boxes of the whole source that have no area within their image, each as "image: class".
        clipped: How many boxes of the whole source reached beyond their image, and were cut off at its edge.
    """

    def __init__(
        self,
        images: ImageSet,
        boxes: list[Boxes],
        classes: list[str],
        dropped: list[str] | None = None,
        clipped: int = 0,
    ) -> None:
        super().__init__(images)
        self.boxes, self.classes = boxes, classes
        self.dropped, self.clipped = dropped or [], clipped

    def __repr__(self) -> str:
        return f"BoxSet({len(self):,} images, {self.num_boxes:,} boxes, {len(self.classes)} classes)"

    @property
    def num_boxes(self) -> int:
        """How many boxes there are in all images together."""
        return sum(map(len, self.boxes))

    def subset(self, indices: Sequence[int] | Array) -> Self:
        """Return the images at these indices, in this order, with their boxes."""
        boxes = [self.boxes[int(i)] for i in indices]
        return type(self)(self.images.subset(indices), boxes, self.classes, self.dropped, self.clipped)

    def renumbered(self, classes: Sequence[str]) -> Self:
        """The same with other numbers of the classes: the position of each one's name in `classes`.

        Raises:
            ValueError: Boxes of a class that is not among them; names all such classes.
        """
        used = sorted({int(label) for boxes in self.boxes for label in boxes.labels})
        _refuse_strangers([self.classes[label] for label in used], classes)
        number = np.array([list(classes).index(name) if name in classes else -1 for name in self.classes], np.int64)
        boxes = [Boxes(boxes.xyxy, number[boxes.labels], boxes.crowd) for boxes in self.boxes]
        return type(self)(self.images, boxes, list(classes), self.dropped, self.clipped)

    def read(self, i: int, min_size: int | None = None) -> tuple[Image.Image, tuple[int, int]]:
        """Read image `i` and its (height, width): see `ImageSet.read`."""
        return self.images.read(i, min_size)

    def example(self, i: int) -> tuple[Image.Image, Target]:
        """Image `i`, and what is to be learned from it: "boxes" and "labels", crowds left out."""
        image, boxes = self.images[i], self.boxes[i]
        xyxy = tv_tensors.BoundingBoxes(
            torch.from_numpy(boxes.xyxy[~boxes.crowd]), format="XYXY", canvas_size=(image.height, image.width)
        )
        return image, {"boxes": xyxy, "labels": torch.from_numpy(boxes.labels[~boxes.crowd])}

    def remarks(self) -> list[str]:
        """Lines on boxes that were dropped or clipped; none if none was."""
        lines = []
        if self.dropped:
            lines.append(f"left out, boxes without area: {len(self.dropped):,}, such as {self.dropped[0]}")
        if self.clipped:
            lines.append(f"cut off at the edge of their image: {self.clipped:,} boxes")
        return lines


def open_boxes(
    source: Any,
    *,
    boxes: Sequence[Any] | None = None,
    labels: Sequence[Any] | None = None,
    classes: Sequence[str] | None = None,
    box_format: str | None = None,
) -> BoxSet:
    """Open images with boxes.

    Args:
        source: One of
            - VOC: a folder with Annotations/, its split ROOT/ImageSets/Main/train.txt, or .xml files beside images;
            - COCO: a .json file, whose images lie beside it, or in images/ or a folder of the split's name near it;
            - YOLO: a folder of images with .txt files, beside them or in labels/ for images/; names from a .yaml file
              with `names`, or a classes.txt;
            - a Hugging Face dataset with a column of images and one called "objects" (bbox and category), or the folder
              that one was saved to by `save_to_disk`;
            - whatever `open_images` takes, together with `boxes` and `labels`.
        boxes: One (n, 4) array an image, in pixels.
        labels: One list of n class numbers or names an image.
        classes: Names of the classes. None takes the source's own, those of VOC in natural order.
        box_format: "xyxy" (the default for arrays) or "xywh" (the default for a data set, as COCO has it).

    Raises:
        EmptyDatasetError: There are no images.
        FileNotFoundError: No such source, or annotations of an image that is not there.
        ValueError: No boxes, a class that is not among `classes` (all such are named), splits instead of images, or a
            damaged file of annotations.
    """
    if isinstance(source, BoxSet):
        return source if classes is None else source.renumbered(classes)
    if box_format not in (None, *FORMATS):
        raise ValueError(f"box_format is {' or '.join(FORMATS)}, got {box_format!r}.")
    if (boxes is None) != (labels is None):
        raise ValueError("boxes and labels belong together: one (n, 4) array and one list of n labels an image.")
    if boxes is not None and labels is not None:
        found = _arrays(open_images(source), boxes, labels, box_format or "xyxy")
    else:
        found = _marked(source, box_format or "xywh")
    return _fitted(found, None if classes is None else list(classes))


def _marked(source: Any, box_format: str) -> Marked:
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if box_files.is_saved_dataset(path):
            images = open_images(path)  # says what to install
            import datasets

            return _dataset(datasets.load_from_disk(str(path)), images, box_format)
        return box_files.read(path)
    datasets = sys.modules.get("datasets")  # whoever holds such a dataset has imported it
    if datasets is not None and isinstance(source, (datasets.Dataset, datasets.DatasetDict)):
        return _dataset(source, open_images(source), box_format)
    raise ValueError(
        f"{type(source).__name__} has no boxes. Pass them along, open_boxes(images, boxes=[...], labels=[...]), or a "
        "VOC folder, a COCO .json file, a YOLO folder or a Hugging Face dataset with a column 'objects'."
    )


def _arrays(images: ImageSet, boxes: Sequence[Any], labels: Sequence[Any], box_format: str) -> Marked:
    if not len(images) == len(boxes) == len(labels):
        raise ValueError(
            f"Needs one array of boxes and one list of labels an image, got {len(boxes):,} and {len(labels):,} for "
            f"{len(images):,} images."
        )
    rows = []
    for i, (array, names) in enumerate(zip(boxes, labels, strict=True)):
        values = np.asarray(array, dtype=np.float64) if np.size(array) else np.zeros((0, 4))
        if values.shape != (len(names), 4):
            raise ValueError(f"Image {i} has boxes of shape {np.shape(array)} for {len(names)} labels: needs (n, 4).")
        rows.append(
            [RawBox(str(name), _xyxy(row, box_format)) for name, row in zip(names, values.tolist(), strict=True)]
        )
    numbers = all(isinstance(name, (int, np.integer)) for names in labels for name in names)
    return Marked(images, rows, _numbered(rows) if numbers else None)


def _numbered(rows: Iterable[Sequence[RawBox]]) -> list[str]:
    """Names of numbered classes: 0 up to the largest."""
    return [str(i) for i in range(max((int(box.label) for row in rows for box in row), default=-1) + 1)]


def _dataset(dataset: Any, images: ImageSet, box_format: str) -> Marked:
    """Boxes of a Hugging Face dataset: a column "objects" of dicts of lists, or of lists of dicts."""
    if "objects" not in dataset.features:
        raise ValueError(f"Expected a column 'objects' with bbox and category; the columns are {dataset.features}.")
    keys = ("category", "categories", "label", "labels", "category_id")
    rows = []
    names: list[str] | None = None
    feature = dataset.features["objects"]
    inner = getattr(feature, "feature", feature)  # List(...) and Sequence(...) hold the dict inside
    inner = inner[0] if isinstance(inner, list) else inner
    key = next((key for key in keys if key in inner), None)
    if key is None or "bbox" not in inner:
        raise ValueError(f"Column 'objects' needs 'bbox' and one of {', '.join(keys)}; it has {', '.join(inner)}.")
    label = getattr(inner[key], "feature", inner[key])
    names = list(label.names) if hasattr(label, "names") else None
    for objects in dataset.with_format(None)["objects"]:
        columns = objects if isinstance(objects, dict) else {k: [one[k] for one in objects] for k in ("bbox", key)}
        pairs = zip(columns[key], columns["bbox"], strict=True)
        rows.append([RawBox(names[c] if names else str(c), _xyxy(box, box_format)) for c, box in pairs])
    if names is None and all(box.label.isdigit() for row in rows for box in row):
        names = _numbered(rows)
    return Marked(images, rows, names)


def _xyxy(box: Sequence[float], box_format: str) -> tuple[float, float, float, float]:
    a, b, c, d = box
    return FORMATS[box_format](a, b, c, d)


def _fitted(found: Marked, classes: list[str] | None) -> BoxSet:
    """Number the classes, and cut boxes to their images."""
    if not len(found.images):
        raise EmptyDatasetError("No images: the source is empty.")
    used = sorted({box.label for row in found.boxes for box in row}, key=str.casefold)
    if not used:
        raise ValueError(f"None of the {len(found.images):,} images has a box.")
    names = classes or found.classes or used
    _refuse_strangers(used, names)
    number = {name: i for i, name in enumerate(names)}
    made = BoxSet(found.images, [NONE] * len(found.images), names)
    for i, row in enumerate(found.boxes):
        if not row:
            continue
        try:
            height, width = found.images.size(i)
        except UnreadableImageError:
            continue  # whoever reads the image will find out, and leave it out
        xyxy = np.array([box.xyxy for box in row])
        if found.relative:
            xyxy *= (width, height, width, height)
        inside = xyxy.clip(0, (width, height, width, height))
        good = (inside[:, 2] > inside[:, 0]) & (inside[:, 3] > inside[:, 1])
        made.dropped += [f"{found.images.names[i]}: {row[k].label}" for k in np.flatnonzero(~good)]
        made.clipped += int((np.abs(inside - xyxy).max(1) > OUTSIDE)[good].sum())
        made.boxes[i] = Boxes(
            inside[good].astype(np.float32),
            np.array([number[box.label] for box in row], np.int64)[good],
            np.array([box.crowd for box in row])[good],
        )
    if made.dropped and not any(len(boxes) for boxes in made.boxes):
        unit = "parts of 1 of the image's sides" if found.relative else "pixels, of the image as it is stored"
        raise ValueError(
            f"None of the {len(made.dropped):,} boxes has an area within its image, the first is of "
            f"{made.dropped[0]}. Check that they are in {unit}, and in the right format."
        )
    return made


def _refuse_strangers(used: Sequence[str], classes: Sequence[str]) -> None:
    if strange := [name for name in used if name not in classes]:
        raise ValueError(
            f"There are boxes of {', '.join(map(repr, strange))}; the classes are {', '.join(map(repr, classes))}."
        )
