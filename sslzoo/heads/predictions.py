"""What a classifier said about images: to print, as JSON, as CSV and as a picture."""

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sslzoo.data import ImageSet
from sslzoo.encoding import Array
from sslzoo.feature_files import replacing
from sslzoo.plots import contact_sheet

PRINTED = 20  # images
PICTURED = 48


@dataclass(frozen=True, eq=False)
class Predictions:
    """Probabilities of classes, one row an image.

    Attributes:
        images: The N images that could be read.
        classes: Names of the K classes.
        probabilities: (N, K) float32; rows sum to 1.
        skipped: Name and reason of each image that could not be read.
    """

    images: ImageSet
    classes: list[str]
    probabilities: Array
    skipped: list[tuple[str, str]]

    @property
    def names(self) -> list[str]:
        """Of the images: paths relative to the folder, or numbers."""
        return list(self.images.names)

    @property
    def labels(self) -> list[str]:
        """Name of the most probable class of each image."""
        return [self.classes[i] for i in self.probabilities.argmax(axis=1)]

    @property
    def confidences(self) -> Array:
        """(N,) its probability."""
        return self.probabilities.max(axis=1, initial=0)

    def __len__(self) -> int:
        return len(self.names)

    def __str__(self) -> str:
        width = max((len(name) for name in self.names[:PRINTED]), default=0)
        rows = zip(self.names[:PRINTED], self.labels, self.confidences, strict=False)
        lines = [f"{name:<{width}}  {confidence:6.1%}  {label}" for name, label, confidence in rows]
        if len(self) > PRINTED:
            lines.append(f"and {len(self) - PRINTED:,} more")
        lines += [f"{name}: cannot be read: {reason}" for name, reason in self.skipped]
        return "\n".join(lines)

    def to_json(self) -> str:
        """A list with one object an image: image, label, probability, probabilities by class; or image and error."""
        rows: list[dict[str, Any]] = [
            {
                "image": name,
                "label": label,
                "probability": _short(row.max()),
                "probabilities": dict(zip(self.classes, map(_short, row), strict=True)),
            }
            for name, label, row in zip(self.names, self.labels, self.probabilities, strict=True)
        ]
        rows += [{"image": name, "error": reason} for name, reason in self.skipped]
        return json.dumps(rows, indent=2, ensure_ascii=False)

    def to_csv(self) -> str:
        """A header and one line an image: image, label, probability, that of each class; unreadable ones left out."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["image", "label", "probability", *self.classes])
        for name, label, row in zip(self.names, self.labels, self.probabilities, strict=True):
            writer.writerow([name, label, _short(row.max()), *map(_short, row)])
        return text.getvalue()

    def save(self, path: str | Path) -> None:
        """Write a .json, .csv or picture file (.png, .jpg, .pdf, .svg), by its suffix."""
        path = Path(path)
        if path.suffix not in (".json", ".csv"):
            self.picture(path)
            return
        text = self.to_json() if path.suffix == ".json" else self.to_csv()
        with replacing(path) as file:
            file.write(text.encode("utf-8", "backslashreplace"))  # a file's name may hold any bytes

    def picture(self, path: str | Path, title: str = "") -> None:
        """Draw the first images, each with its class and probability below.

        Raises:
            ValueError: No image could be read.
        """
        shown = range(min(len(self), PICTURED))
        said = [f"{label} {confidence:.0%}" for label, confidence in zip(self.labels, self.confidences, strict=True)]
        contact_sheet([self.images[i] for i in shown], None, said[: len(shown)], Path(path), title)


def _short(probability: np.floating[Any]) -> float:
    return round(float(probability), 6)
