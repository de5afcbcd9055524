"""Files of annotations, as they stand: VOC's XML, COCO's JSON, YOLO's text files. `boxes.open_boxes` reads them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import yaml

from sslzoo.coco import image_files, read_json
from sslzoo.data import IMAGE_SUFFIXES, SPLITS, EmptyDatasetError, ImageSet

VOC_IMAGES = ("JPEGImages", "images", "Images")
COCO_IN_FOLDER = "_annotations.coco.json"  # Roboflow's name for it
YOLO_NAMES = ("classes.txt", "obj.names")


@dataclass(frozen=True)
class RawBox:
    """One box of a file.

    Attributes:
        label: Name of its class.
        xyxy: Left, top, right, bottom; pixels, or parts of width and height.
        crowd: A crowd, or an object too difficult to count.
    """

    label: str
    xyxy: tuple[float, float, float, float]
    crowd: bool = False


@dataclass(frozen=True, eq=False)
class Marked:
    """Images and the boxes that files have for them.

    Attributes:
        images: Not opened yet.
        boxes: One list an image.
        classes: Names of all classes in the source's own order; None if it has none.
        relative: Boxes are parts of width and height.
    """

    images: ImageSet
    boxes: list[list[RawBox]]
    classes: list[str] | None = None
    relative: bool = False


def read(path: Path) -> Marked:
    """Read a folder, a file of a split, or a COCO file: see `boxes.open_boxes`.

    Raises:
        FileNotFoundError: There is no such file or folder, or annotations are of an image that is not there.
        ValueError: Nothing that has boxes, or damaged.
    """
    if not path.exists():
        raise FileNotFoundError(f"No such file or folder: {path}")
    if path.is_dir():
        return _read_folder(path)
    if path.suffix.lower() == ".json":
        return _read_coco(path)
    if path.suffix.lower() == ".txt" and path.parent.parent.name == "ImageSets":
        return _read_voc(path.parents[2], _lines(path))
    if path.suffix.lower() in (".yaml", ".yml"):
        settings = _yaml(path)
        splits = ", ".join(f"{key}: {settings[key]}" for key in settings if key in SPLITS)
        raise ValueError(f"{path} names splits ({splits or 'none'}). Pass the folder of images of one of them.")
    raise ValueError(
        f"Cannot take boxes from {path}: expected a folder, a COCO .json file, or ImageSets/Main/train.txt."
    )


def is_saved_dataset(path: Path) -> bool:
    """Whether a Hugging Face dataset was saved to this folder."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def _read_folder(folder: Path) -> Marked:
    if (folder / "Annotations").is_dir():
        if splits := sorted((folder / "ImageSets" / "Main").glob("*.txt")):
            known = [path for path in splits if path.stem.lower() in SPLITS | {"trainval"}] or splits
            names = ", ".join(path.stem for path in known)
            first = next((path for path in known if path.stem == "train"), known[0])
            raise ValueError(f"{folder} holds the splits {names}. Pass one of them, such as {first}.")
        return _read_voc(folder, None)
    if any(folder.glob("*.xml")):
        return _read_voc(folder, None)
    if (folder / COCO_IN_FOLDER).is_file():
        return _read_coco(folder / COCO_IN_FOLDER)
    return _read_yolo(folder)


# VOC


def _read_voc(root: Path, stems: list[str] | None) -> Marked:
    """Images of a VOC folder, or those of some stems (a line of a split may have more words after it)."""
    annotations = root / "Annotations" if (root / "Annotations").is_dir() else root
    if stems is None:
        stems = sorted(path.stem for path in annotations.glob("*.xml"))
    stems = [stem.split()[0] for stem in stems]
    if not stems:
        raise EmptyDatasetError(f"No .xml files in {annotations}, or an empty split.")
    folder = next((root / name for name in VOC_IMAGES if (root / name).is_dir()), root)
    file_of = {path.stem: path.name for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES}
    _refuse_missing([stem for stem in stems if stem not in file_of], folder, "images")
    _refuse_missing([s for s in stems if not (annotations / f"{s}.xml").is_file()], annotations, ".xml files")
    boxes = [list(_voc_boxes(annotations / f"{stem}.xml")) for stem in stems]
    return Marked(ImageSet(None, [file_of[stem] for stem in stems], root=folder), boxes)


def _voc_boxes(path: Path) -> Iterator[RawBox]:
    try:
        for found in ElementTree.parse(path).getroot().iter("object"):
            left, top, right, bottom = (
                float(found.findtext(f"bndbox/{edge}", "")) for edge in ("xmin", "ymin", "xmax", "ymax")
            )
            name, difficult = found.findtext("name", "").strip(), found.findtext("difficult", "0").strip() == "1"
            if not name:
                raise ValueError("an object without a name")
            # VOC counts pixels from 1, and the last one is inside. Equal edges are taken for a slip of the mouse.
            shift = 1 if right > left and bottom > top else 0
            yield RawBox(name, (max(left - shift, 0), max(top - shift, 0), right, bottom), difficult)
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"{path} is no VOC annotation: {error}.") from error


def _refuse_missing(missing: list[str], folder: Path, what: str) -> None:
    if missing:
        raise FileNotFoundError(f"{folder} lacks {what} of {len(missing):,} entries, such as {missing[0]!r}.")


# COCO


def _read_coco(path: Path) -> Marked:
    content = read_json(path)
    classes = {row["id"]: str(row["name"]) for row in sorted(content["categories"], key=lambda row: row["id"])}
    boxes: dict[Any, list[RawBox]] = {row["id"]: [] for row in content["images"]}
    if not boxes:
        raise EmptyDatasetError(f"{path} lists no images.")
    for row in content["annotations"]:
        if row["category_id"] not in classes or row["image_id"] not in boxes:
            raise ValueError(f"{path}: annotation {row.get('id')} is of an image or category that the file has not.")
        left, top, width, height = map(float, row["bbox"])
        xyxy = left, top, left + width, top + height
        boxes[row["image_id"]].append(RawBox(classes[row["category_id"]], xyxy, bool(row.get("iscrowd"))))
    names = [str(row["file_name"]) for row in content["images"]]
    files = image_files(path, names)
    root = Path(str(files[0]).removesuffix(names[0]))
    _refuse_missing([name for name, file in zip(names, files, strict=True) if not file.is_file()], root, "images")
    return Marked(ImageSet(None, names, root=root), list(boxes.values()), list(classes.values()))


# YOLO


def _read_yolo(folder: Path) -> Marked:
    nested = (folder / "images").is_dir() and (folder / "labels").is_dir()
    root = folder / "images" if nested else folder
    labels = _label_folder(root)
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    relative = [path.relative_to(root) for path in files]
    tops = sorted({path.parts[0] for path in relative if len(path.parts) > 1})
    if tops and SPLITS.issuperset(top.lower() for top in tops):
        raise ValueError(f"{folder} holds the splits {', '.join(tops)}. Pass one of them, such as {root / tops[0]}.")
    if not any((labels / path).with_suffix(".txt").is_file() for path in relative):
        raise ValueError(
            f"Found no boxes in {folder}. Needed is a VOC folder with Annotations/ or .xml files, a COCO .json file, "
            f"or YOLO's .txt files (looked for them in {labels})."
        )
    classes = _yolo_classes(folder, labels)
    boxes = [list(_yolo_boxes((labels / path).with_suffix(".txt"), classes)) for path in relative]
    if classes is None:
        largest = max((int(box.label) for row in boxes for box in row), default=-1)
        classes = [str(i) for i in range(largest + 1)]
    return Marked(ImageSet(None, [path.as_posix() for path in relative], root=root), boxes, classes, relative=True)


def _label_folder(images: Path) -> Path:
    """Where .txt files of images lie: labels/train for images/train, if there is such a folder, else beside them."""
    parts = list(images.absolute().parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
        if Path(*parts).is_dir():
            return Path(*parts)
    return images


def _yolo_classes(folder: Path, labels: Path) -> list[str] | None:
    """Names from the nearest .yaml file with `names`, or classes.txt, up to three folders above."""
    for place in (labels, folder, *folder.absolute().parents[:3]):
        for path in sorted([*place.glob("*.yaml"), *place.glob("*.yml")]):
            names = _yaml(path).get("names")
            if names:
                return [str(names[key]) for key in sorted(names)] if isinstance(names, dict) else list(map(str, names))
        for name in YOLO_NAMES:
            if (place / name).is_file():
                return _lines(place / name)
    return None


def _yolo_boxes(path: Path, classes: list[str] | None) -> Iterator[RawBox]:
    for n, line in enumerate(_lines(path) if path.is_file() else ()):
        try:
            label, *box = line.split()
            x, y, width, height = map(float, box)
            number = int(label)
            name = classes[number] if classes and number >= 0 else str(number)
        except (ValueError, IndexError) as error:
            known = f"; there are {len(classes)} classes" if classes else ""
            raise ValueError(
                f"{path}, line {n + 1}: {line!r} is not 'class x y width height', parts of 1{known}."
            ) from error
        yield RawBox(name, (x - width / 2, y - height / 2, x + width / 2, y + height / 2))


def _yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML file: {error}.") from error
    return content if isinstance(content, dict) else {}


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
