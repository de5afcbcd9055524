"""What a segmenter said about images: to print, as JSON, CSV, mask files and pictures."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sslzoo.class_table import Colour
from sslzoo.coco import encode_runs
from sslzoo.data import ImageSet
from sslzoo.feature_files import replacing
from sslzoo.masks import Mask
from sslzoo.plots import overlay_sheet

PRINTED = 20  # images
PICTURED = 24
NAMED = 5  # classes of an image that are printed, those with most pixels


class PackedMasks(Sequence[Mask]):
    """Masks (H, W) uint8 of any sizes, held as PNG files: a hundredth of the memory."""

    def __init__(self) -> None:
        self._files: list[bytes] = []

    def append(self, mask: Mask) -> None:
        """Add a mask."""
        file = io.BytesIO()
        Image.fromarray(mask).save(file, "png", compress_level=1)
        self._files.append(file.getvalue())

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, i: Any) -> Any:
        """Mask `i`, or a list of them for a slice."""
        if isinstance(i, slice):
            return [self[k] for k in range(len(self))[i]]
        return np.asarray(Image.open(io.BytesIO(self._files[i])))


@dataclass(frozen=True, eq=False)
class Segmentations:
    """The class of every pixel.

    Attributes:
        images: The N images that could be read.
        classes: Names of the K classes.
        colours: Of the classes, (red, green, blue).
        masks: N arrays (H, W) uint8 of class numbers, each of the size of its image.
        skipped: Name and reason of each image that could not be read.
    """

    images: ImageSet
    classes: list[str]
    colours: list[Colour]
    masks: Sequence[Mask]
    skipped: list[tuple[str, str]]

    @property
    def names(self) -> list[str]:
        """Of the images: paths relative to the folder, or numbers."""
        return list(self.images.names)

    def shares(self, i: int) -> dict[str, float]:
        """The classes on image `i`, most pixels first -> part of its pixels."""
        counts = np.bincount(self.masks[i].ravel(), minlength=len(self.classes)) / self.masks[i].size
        return {self.classes[k]: float(counts[k]) for k in np.argsort(-counts, kind="stable") if counts[k] > 0}

    def __len__(self) -> int:
        return len(self.names)

    def __str__(self) -> str:
        width = max((len(name) for name in self.names[:PRINTED]), default=0)
        lines = []
        for i, name in enumerate(self.names[:PRINTED]):
            shares = list(self.shares(i).items())
            more = f", {len(shares) - NAMED} more" if len(shares) > NAMED else ""
            lines.append(f"{name:<{width}}  {', '.join(f'{c} {share:.1%}' for c, share in shares[:NAMED])}{more}")
        if len(self) > PRINTED:
            lines.append(f"and {len(self) - PRINTED:,} more")
        lines += [f"{name}: cannot be read: {reason}" for name, reason in self.skipped]
        return "\n".join(lines)

    def to_json(self) -> str:
        """A list with one object an image: image, height, width, and for each class on it label, share, segmentation.

        The segmentation is COCO's run-length code, as a list of counts; images that cannot be read have an error.
        """
        rows: list[dict[str, Any]] = []
        for i, name in enumerate(self.names):
            mask = self.masks[i]
            segments = [
                {
                    "label": label,
                    "share": round(share, 6),
                    "segmentation": encode_runs(mask == self.classes.index(label)),
                }
                for label, share in self.shares(i).items()
            ]
            rows.append({"image": name, "height": mask.shape[0], "width": mask.shape[1], "segments": segments})
        rows += [{"image": name, "error": reason} for name, reason in self.skipped]
        return json.dumps(rows, ensure_ascii=False)

    def to_csv(self) -> str:
        """A header and one line an image: image, and of each class the part of its pixels."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["image", *self.classes])
        for i, name in enumerate(self.names):
            shares = self.shares(i)
            writer.writerow([name, *(round(shares.get(label, 0.0), 6) for label in self.classes)])
        return text.getvalue()

    def save(self, path: str | Path) -> None:
        """Write a .json, .csv or picture file (.png, .jpg, .pdf, .svg), by its suffix; without one masks, a folder."""
        path = Path(path)
        if not path.suffix:
            self.save_masks(path)
        elif path.suffix in (".json", ".csv"):
            text = self.to_json() if path.suffix == ".json" else self.to_csv()
            with replacing(path) as file:
                file.write(text.encode("utf-8", "backslashreplace"))  # a file's name may hold any bytes
        else:
            self.picture(path)

    def save_masks(self, folder: str | Path) -> None:
        """Write a PNG file an image, whose values are class numbers and whose palette has the colours; and classes.csv.

        The files are called as the images are, below this folder.
        """
        folder = Path(folder)
        lines = [
            f"{name},{red},{green},{blue}" for name, (red, green, blue) in zip(self.classes, self.colours, strict=True)
        ]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "classes.csv").write_text("\n".join(["name,r,g,b", *lines]) + "\n", encoding="utf-8")
        for name, mask in zip(self.names, self.masks, strict=True):
            inside = Path(*(part for part in Path(name).parts if part not in ("..", Path(name).anchor)))
            file = (folder / inside).with_suffix(".png")
            file.parent.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(mask)
            picture.putpalette([value for colour in self.colours for value in colour])
            picture.save(file)

    def picture(self, path: str | Path, title: str = "") -> None:
        """Draw the first images with their classes over them, and a legend.

        Raises:
            ValueError: No image could be read.
        """
        shown = range(min(len(self), PICTURED))
        cells = [(self.images[i], self.masks[i]) for i in shown]
        overlay_sheet(cells, self.classes, self.colours, Path(path), title, captions=[self.names[i] for i in shown])
