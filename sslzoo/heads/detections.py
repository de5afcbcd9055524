"""What a detector found in images: to print, as JSON, as a COCO file, as CSV and as pictures with boxes."""

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from torch import Tensor

from sslzoo.data import ImageSet
from sslzoo.feature_files import replacing
from sslzoo.plots import boxes_picture

PRINTED = 20  # images
PICTURED = 12

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Found:
    """Boxes that were found in one image, best first.

    Attributes:
        xyxy: (n, 4) float32: left, top, right and bottom edge in pixels.
        scores: (n,) float32, 0 to 1.
        labels: (n,) int64 class numbers.
    """

    xyxy: Array
    scores: Array
    labels: Array

    @classmethod
    def of(cls, detections: Mapping[str, Tensor], min_score: float = 0.0) -> Self:
        """What `Detector.forward` says of an image, from a score on."""
        good = detections["scores"] >= min_score
        arrays = (detections[key][good].cpu() for key in ("boxes", "scores", "labels"))
        xyxy, scores, labels = arrays
        return cls(xyxy.float().numpy(), scores.float().numpy(), labels.numpy())

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Detections:
    """Boxes in images.

    Attributes:
        images: The N images that could be read.
        classes: Names of the classes.
        found: N times the boxes of an image.
        skipped: Name and reason of each image that could not be read.
    """

    images: ImageSet
    classes: list[str]
    found: list[Found]
    skipped: list[tuple[str, str]]

    @property
    def names(self) -> Sequence[str]:
        """Of the images: paths relative to the folder, or numbers."""
        return self.images.names

    def __len__(self) -> int:
        return len(self.names)

    def __str__(self) -> str:
        width = max((len(name) for name in self.names[:PRINTED]), default=0)
        rows = zip(self.names[:PRINTED], self.found, strict=False)
        lines = [f"{name:<{width}}  {self._counted(found)}" for name, found in rows]
        if len(self) > PRINTED:
            lines.append(f"and {len(self) - PRINTED:,} more")
        lines += [f"{name}: cannot be read: {reason}" for name, reason in self.skipped]
        return "\n".join(lines)

    def _counted(self, found: Found) -> str:
        """Such as "12 RBC (85%-100%), 1 WBC (99%)"."""
        counts = Counter(found.labels.tolist())
        texts = []
        for label, count in counts.most_common():
            scores = found.scores[found.labels == label]
            low, high = f"{scores.min():.0%}", f"{scores.max():.0%}"
            texts.append(f"{count} {self.classes[label]} ({low if low == high else f'{low}–{high}'})")
        return ", ".join(texts) or "nothing"

    def to_json(self) -> str:
        """A list with one object an image: image, width, height, and objects, each with label, score and box.

        A box is [left, top, right, bottom] in pixels. An image that cannot be read has "error" instead.
        """
        rows: list[dict[str, Any]] = []
        for i, (name, found) in enumerate(zip(self.names, self.found, strict=True)):
            height, width = self.images.size(i)
            rows.append({"image": name, "width": width, "height": height, "objects": self._objects(found)})
        rows += [{"image": name, "error": reason} for name, reason in self.skipped]
        return json.dumps(rows, indent=2, ensure_ascii=False)

    def _objects(self, found: Found) -> list[dict[str, Any]]:
        return [
            {"label": self.classes[label], "score": round(score, 4), "box": [round(edge, 2) for edge in box]}
            for box, score, label in zip(found.xyxy.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
        ]

    def to_coco(self) -> str:
        """A file as COCO has it, with a score beside each box; annotation tools and `open_boxes` read it."""
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for i, (name, found) in enumerate(zip(self.names, self.found, strict=True), start=1):
            height, width = self.images.size(i - 1)
            images.append({"id": i, "file_name": name, "width": width, "height": height})
            for one, label in zip(self._objects(found), found.labels.tolist(), strict=True):
                left, top, right, bottom = one["box"]
                box = [left, top, round(right - left, 2), round(bottom - top, 2)]
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": i, "category_id": label + 1, "bbox": box,
                     "area": round(box[2] * box[3], 2), "iscrowd": 0, "score": one["score"]}
                )  # fmt: skip
        categories = [{"id": n, "name": name} for n, name in enumerate(self.classes, start=1)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        return json.dumps(content, indent=2, ensure_ascii=False)

    def to_csv(self) -> str:
        """A header and one line a box: image, label, score, left, top, right, bottom."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["image", "label", "score", "left", "top", "right", "bottom"])
        for name, found in zip(self.names, self.found, strict=True):
            writer.writerows([name, one["label"], one["score"], *one["box"]] for one in self._objects(found))
        return text.getvalue()

    def save(self, path: str | Path) -> None:
        """Write a .json, .coco.json, .csv or picture file (.png, .jpg, .pdf, .svg), by its suffix."""
        path = Path(path)
        if path.name.endswith(".coco.json"):
            text = self.to_coco()
        elif path.suffix == ".json":
            text = self.to_json()
        elif path.suffix == ".csv":
            text = self.to_csv()
        else:
            self.picture(path)
            return
        with replacing(path) as file:
            file.write(text.encode("utf-8", "backslashreplace"))  # a file's name may hold any bytes

    def picture(self, path: str | Path, title: str = "", truth: Sequence[Any] | None = None) -> None:
        """Draw the first images with their boxes, each with class and score.

        Args:
            path: Where to.
            title: Above the picture.
            truth: The true `Boxes` of all images, drawn on a second copy of each image, to its left.

        Raises:
            ValueError: No image could be read.
        """
        shown = range(min(len(self), PICTURED if truth is None else PICTURED // 2))
        boxes_picture(
            [self.images[i] for i in shown],
            [(f.xyxy, f.labels, f.scores) for f in (self.found[i] for i in shown)],
            self.classes,
            Path(path),
            title,
            truth=None if truth is None else [(truth[i].xyxy, truth[i].labels) for i in shown],
        )
