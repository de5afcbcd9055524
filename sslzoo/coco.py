"""COCO's .json files of instances: images, classes and outlines, https://cocodataset.org/#format-data.

files, masks, classes = read_coco(Path("annotations/instances_train2017.json"))
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

Values = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class CocoMask:
    """Outlines of one image, the largest first: smaller ones lie on top.

    Attributes:
        size: (height, width).
        shapes: Value to draw, and polygons [[x, y, x, y, ...], ...] or a run-length code {"size", "counts"}.
    """

    size: tuple[int, int]
    shapes: list[tuple[int, Any]]

    def draw(self) -> Values:
        """Values (H, W), 0 where nothing is."""
        canvas = Image.new("L", self.size[::-1])
        pen = ImageDraw.Draw(canvas)
        for value, shape in self.shapes:
            if isinstance(shape, dict):
                inside = decode_runs(shape)
                canvas.paste(value, mask=Image.fromarray(inside.astype(np.uint8) * 255))
                continue
            for polygon in shape:
                if len(polygon) >= 6:
                    pen.polygon(
                        [(x - 0.5, y - 0.5) for x, y in zip(polygon[::2], polygon[1::2], strict=True)], fill=value
                    )
        return np.asarray(canvas).astype(np.int64)


def read_coco(path: Path) -> tuple[list[Path], list[CocoMask], list[str]]:
    """Read the images that have outlines.

    Returns:
        Files of the images, a mask each with the classes as 1, 2, ..., and names of the classes, in order of their id.

    Raises:
        ValueError: The file is not COCO's, or an outline has a class that is not there.
        FileNotFoundError: The images are not where they are looked for.
    """
    content = read_json(path)
    names = {row["id"]: row["name"] for row in sorted(content["categories"], key=lambda row: row["id"])}
    values = {id_: value for value, id_ in enumerate(names, start=1)}
    shapes: dict[Any, list[tuple[float, int, Any]]] = {row["id"]: [] for row in content["images"]}
    for row in content["annotations"]:
        if row["category_id"] not in values or row["image_id"] not in shapes:
            raise ValueError(f"{path}: annotation {row.get('id')} is of an image or category that the file has not.")
        if row.get("segmentation"):
            shapes[row["image_id"]].append((row.get("area", 0.0), values[row["category_id"]], row["segmentation"]))
    marked = [row for row in content["images"] if shapes[row["id"]]]
    if not marked:
        raise ValueError(f"{path}: no image has an outline ('segmentation').")
    masks = [
        CocoMask((row["height"], row["width"]), [s[1:] for s in sorted(shapes[row["id"]], key=lambda s: -s[0])])
        for row in marked
    ]
    return image_files(path, [row["file_name"] for row in marked]), masks, list(names.values())


def read_json(path: Path) -> dict[str, Any]:
    """Read a file of COCO's.

    Raises:
        ValueError: It is not JSON, or has no images, annotations or categories.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    wanted = ("images", "annotations", "categories")
    if not isinstance(content, dict) or any(key not in content for key in wanted):
        raise ValueError(f"{path} is no file of COCO's: it needs {', '.join(wanted)}.")
    return content


def image_files(path: Path, names: list[str]) -> list[Path]:
    """Find the images of a .json file: beside it, in images/, or in NAME/ for annotations/instances_NAME.json.

    Raises:
        FileNotFoundError: They are in none of these.
    """
    here = path.resolve().parent
    split = path.stem.partition("_")[2]
    places = [here, here / "images", here.parent, here.parent / "images"]
    places += [folder / part for folder in (here.parent, here.parent / "images") for part in (split, path.stem) if part]
    for place in places:
        if (place / names[0]).is_file():
            return [place / name for name in names]
    raise FileNotFoundError(
        f"{path}: there is no file {names[0]!r} beside it, in images/, or in a folder of its split."
    )


def decode_runs(code: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Decode COCO's run lengths: (H, W), True inside.

    Args:
        code: "size" (height, width) and "counts", pixels outside and inside by turns, down the columns; a list, or the
            compressed string of COCO's API.
    """
    counts = code["counts"] if isinstance(code["counts"], list) else _uncompressed(code["counts"])
    flags = np.arange(len(counts)) % 2 == 1
    return np.repeat(flags, counts).reshape(code["size"][::-1]).T


def encode_runs(inside: np.ndarray[Any, np.dtype[np.bool_]]) -> dict[str, Any]:
    """The inverse of `decode_runs`, with a list."""
    flat = inside.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return {"size": list(inside.shape), "counts": [0, *counts] if flat[0] else counts}


def _uncompressed(text: str | bytes) -> list[int]:
    """Numbers in 5-bit digits, lowest first, each from the third on as its difference to the one before the last."""
    counts: list[int] = []
    value = shift = 0
    for byte in text.encode() if isinstance(text, str) else text:
        digit = byte - 48
        value |= (digit & 0x1F) << shift
        shift += 5
        if digit & 0x20:
            continue
        if digit & 0x10:  # negative
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    return counts
