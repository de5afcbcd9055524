"""Sets of images with masks, opened without decoding a pixel: folders, Pascal VOC, COCO, arrays, Hugging Face datasets.

data = open_masks("scenes/train")           # images/ and masks/, same names
image, target = data.example(0)             # target["masks"]: (H, W) class numbers, 255 where nothing counts
data.classes, data.colours
"""

import sys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

from sslzoo.class_table import VOC, ClassTable, Colour, as_table, find_table, palette
from sslzoo.coco import CocoMask, read_coco
from sslzoo.data import IMAGE_KEYS, EmptyDatasetError, ImageSet, UnreadableImageError, open_images
from sslzoo.joint import IGNORE, MarkedImages, Target

MASK_KEYS = ("masks", "mask", "labels", "y")
IMAGE_FOLDERS = ("images", "image", "imgs", "JPEGImages")
MASK_FOLDERS = ("masks", "mask", "labels", "annotations", "SegmentationClass")
MASK_COLUMNS = ("mask", "masks", "annotation", "segmentation_mask", "segmentation", "label", "labels")
UNKNOWN = -1

Mask = np.ndarray[Any, np.dtype[np.uint8]]
Counts = np.ndarray[Any, np.dtype[np.int64]]


class MaskSet(MarkedImages):
    """Images with a mask each, both read when asked for. Made by `open_masks`; it pickles.

    Attributes:
        images: The images.
        classes: Names of the classes 0, 1, ...; None if nothing names them.
        colours: Of the classes, as masks or a class file have them; None otherwise.
        left_out: Names of images that have no mask.
    """

    def __init__(
        self, images: ImageSet, masks: Sequence[Any], table: ClassTable | None, left_out: list[str] | None = None
    ) -> None:
        super().__init__(images)
        self._masks, self.left_out = masks, left_out or []
        self._positions: Sequence[int] = range(len(images))  # of this set's masks in _masks
        self._table = table
        kept = range(256) if table is None else table.kept
        self.classes = None if table is None else [table.names[value] for value in kept]
        self.colours = None if table is None or table.colours is None else [table.colours[value] for value in kept]
        self._numbers = np.full(257, UNKNOWN, dtype=np.int16)  # value in a mask -> class; the last: any greater value
        if table is not None:
            self._numbers[: len(table.names)] = IGNORE
        self._numbers[list(kept)] = range(len(kept))
        if table is None or len(table.names) <= IGNORE:
            self._numbers[IGNORE] = IGNORE
        self._counts: Counts = np.full((len(images), 256), -1, dtype=np.int64)

    def __repr__(self) -> str:
        return f"MaskSet({len(self):,} images{f', {len(self.classes)} classes' if self.classes else ''})"

    def subset(self, indices: Sequence[int] | np.ndarray[Any, Any]) -> Self:
        """Return the images at these indices, in this order."""
        chosen = [int(i) for i in indices]
        part = type(self)(self.images.subset(chosen), self._masks, self._table, self.left_out)
        part.classes, part.colours, part._numbers = self.classes, self.colours, self._numbers
        part._positions = [self._positions[i] for i in chosen]
        part._counts = self._counts[chosen]
        return part

    def renumbered(self, classes: Sequence[str]) -> Self:
        """The same with other numbers of the classes: the position of each one's name in `classes`.

        Raises:
            ValueError: A class of the masks is not among them.
        """
        own = [str(number) for number in range(self.highest() + 1)] if self.classes is None else self.classes
        if strange := [name for name in own if name not in classes]:
            raise ValueError(f"masks have classes {', '.join(map(repr, strange))}")
        new = np.array([list(classes).index(name) for name in own], dtype=np.int16)
        part = self.subset(range(len(self)))
        part.classes, part.colours, part._numbers = list(classes), None, self._numbers.copy()
        moved = (self._numbers >= 0) & (self._numbers < len(new))
        part._numbers[moved] = new[self._numbers[moved]]
        unread = self._counts[:, 0] < 0
        part._counts = np.zeros_like(self._counts)
        part._counts[:, new] = self._counts[:, : len(new)]
        part._counts[:, IGNORE] = self._counts[:, IGNORE]
        part._counts[unread] = -1
        return part

    def example(self, i: int) -> tuple[Image.Image, Target]:
        """Image `i`, and its mask as "masks"."""
        return self.images[i], {"masks": tv_tensors.Mask(torch.from_numpy(self.mask(i)))}

    def read(self, i: int, min_size: int | None = None) -> tuple[Image.Image, tuple[int, int]]:
        """Read image `i` and its (height, width), and check the mask: see `ImageSet.read`.

        Raises:
            UnreadableImageError: Image or mask is damaged.
            ValueError: The mask has another size than the image, or values that are no classes.
        """
        image, size = self.images.read(i, min_size)
        mask = self.mask(i)
        if mask.shape != size:
            raise ValueError(
                f"{self.names[i]} has {size[0]}×{size[1]} pixels, its mask {mask.shape[0]}×{mask.shape[1]}. "
                "Make the mask of the image as it is shown, in the same size."
            )
        self._counts[i] = np.bincount(mask.ravel(), minlength=256)
        return image, size

    def mask(self, i: int) -> Mask:
        """Class numbers (H, W) of image `i`; 255 where a pixel counts nowhere.

        Raises:
            UnreadableImageError: The mask is damaged.
            ValueError: It has values that are no classes.
        """
        values = self._values(i)
        numbers = self._numbers[np.minimum(values, 256)]
        if (numbers == UNKNOWN).any():
            strange = np.unique(values[numbers == UNKNOWN])[:5].tolist()
            raise ValueError(
                f"The mask of {self.names[i]} has values {', '.join(map(str, strange))}, which are no classes: those "
                f"are 0 to {len(self._table.names) - 1 if self._table else 254}, and {IGNORE} where nothing counts."
            )
        return numbers.astype(np.uint8)

    def _values(self, i: int) -> np.ndarray[Any, Any]:
        item = self._masks[self._positions[i]]
        if isinstance(item, CocoMask):
            return item.draw()
        if isinstance(item, (np.ndarray, Tensor)):
            return _as_values(np.asarray(item), self.names[i])
        opened = item
        try:
            if not isinstance(item, Image.Image):
                opened = Image.open(BytesIO(item["bytes"]) if isinstance(item, dict) and item["bytes"] else _path(item))
            opened.load()
        except Exception as error:  # decoders raise OSError, SyntaxError, struct.error and more
            raise UnreadableImageError(self.names[i], f"its mask: {error}") from error
        return self._from_picture(opened, self.names[i])

    def _from_picture(self, picture: Image.Image, name: str) -> np.ndarray[Any, Any]:
        """Values of a mask picture: grey levels and palette numbers as they are, colours by the table."""
        colours = self._table.colours if self._table else None
        if picture.mode in ("RGB", "RGBA"):
            if colours is None:
                raise ValueError(
                    f"The mask of {name} is in colour, and nothing says what the colours mean. Put a file classes.txt "
                    "beside the folders, with a class on each line: name,red,green,blue."
                )
            return _by_colour(np.asarray(picture.convert("RGB")), colours, name)
        values = np.asarray(picture.getchannel(0) if picture.mode == "LA" else picture)
        if colours is not None and picture.mode in ("L", "LA", "1") and _are_grey(colours):
            return _by_colour(np.asarray(picture.convert("RGB")), colours, name)
        return _as_values(values, name)

    def counts(self) -> Counts:
        """Pixels by class, (N, 256); column 255 has those that count nowhere. Reads what was not read before."""
        for i in np.flatnonzero(self._counts[:, 0] < 0).tolist():
            self._counts[i] = np.bincount(self.mask(i).ravel(), minlength=256)
        return self._counts

    def highest(self) -> int:
        """The greatest class number that a pixel has; -1 if none counts."""
        there = np.flatnonzero(self.counts()[:, :IGNORE].sum(axis=0))
        return int(there[-1]) if len(there) else -1


def open_masks(source: Any, *, classes: Sequence[str] | str | Path | ClassTable | None = None) -> MaskSet:
    """Open images with masks, without decoding them.

    Args:
        source: A folder with `images/` and `masks/` (or what else `IMAGE_FOLDERS` and `MASK_FOLDERS` name), whose
            files have the same names but for the suffix; a list of Pascal VOC's, .../ImageSets/Segmentation/train.txt;
            a .json file of COCO's instances, whose classes get the numbers from 1, background being 0; an .npz file
            with "images" and "masks"; a pair of what `open_images` takes and as many masks (paths, arrays (H, W), PIL
            images, or one array (N, H, W)); or a Hugging Face dataset with two image columns.
        classes: Names of the values 0, 1, ... in masks, or a file of them: see `sslzoo.class_table`. None takes the
            class file beside the folders, or in the one above. Pixels of a class called void, and of value 255, are
            ignored everywhere.

    Raises:
        EmptyDatasetError: There are no images, or none that has a mask.
        FileNotFoundError: There is no such file or folder.
        ValueError: An ambiguous source, or as many masks as there are not images.
    """
    table = None if classes is None else as_table(classes)
    if isinstance(source, MaskSet):
        if table is not None:
            return MaskSet(source.images, [source._masks[i] for i in source._positions], table, source.left_out)
        return source.subset(range(len(source)))
    if isinstance(source, (str, Path)):
        return _open_path(Path(source), table)
    datasets = sys.modules.get("datasets")  # whoever holds such a dataset has imported it
    if datasets is not None and isinstance(source, datasets.Dataset):
        return _open_hf(source, table)
    if isinstance(source, (tuple, list)) and len(source) == 2:
        return _pair(open_images(source[0]), source[1], table)
    raise TypeError(
        f"Cannot take images and masks from {type(source).__name__}: pass a folder, a list of Pascal VOC's, a .json "
        "file of COCO's, an .npz file, a pair (images, masks), or a Hugging Face dataset."
    )


def _open_path(path: Path, table: ClassTable | None) -> MaskSet:
    if path.is_dir():
        return _open_folder(path, table)
    if not path.exists():
        raise FileNotFoundError(f"No such file or folder: {path}")
    opener = {".json": _open_coco, ".txt": _open_list, ".npz": _open_npz}.get(path.suffix.lower())
    if opener is None:
        raise ValueError(f"Cannot take images and masks from {path}: expected a folder, or a .txt, .json or .npz file.")
    return opener(path, table)


def _open_folder(root: Path, table: ClassTable | None) -> MaskSet:
    if (root / "state.json").is_file():
        from datasets import load_from_disk

        return _open_hf(load_from_disk(str(root)), table)
    images, masks = (_first_folder(root, names) for names in (IMAGE_FOLDERS, MASK_FOLDERS))
    if root.parent.name in IMAGE_FOLDERS:  # images/training beside annotations/training
        images, masks = root, _first_folder(root.parent.parent, [f"{name}/{root.name}" for name in MASK_FOLDERS])
    lists = sorted((root / "ImageSets" / "Segmentation").glob("*.txt"))
    if lists:
        raise ValueError(f"{root} holds splits: {', '.join(path.stem for path in lists)}. Pass {lists[0]}, for one.")
    if images is None or masks is None:
        parts = [path.name for path in sorted(root.iterdir()) if _first_folder(path, MASK_FOLDERS)]
        hint = f" It holds splits: pass {root / parts[-1]}." if parts else ""
        raise ValueError(f"{root} needs the folders images/ and masks/, with files of the same names.{hint}")
    found = open_images(images, labels=None)
    found.labels = found.classes = None  # sub-folders are not classes here
    files = {str(path.relative_to(masks).with_suffix("")): path for path in masks.rglob("*") if path.is_file()}
    stems = [str(Path(name).with_suffix("")) for name in found.names]
    return _with_masks(found, [files.get(stem) for stem in stems], table or find_table(root), masks)


def _with_masks(images: ImageSet, files: list[Path | None], table: ClassTable | None, where: Path) -> MaskSet:
    """Leave out the images without a mask."""
    there = [i for i, file in enumerate(files) if file is not None]
    if not there:
        raise EmptyDatasetError(f"No image has a mask: looked in {where} for files such as {images.names[0]}.")
    left_out = [images.names[i] for i, file in enumerate(files) if file is None]
    return MaskSet(images.subset(there), [str(files[i]) for i in there], table, left_out)


def _first_folder(root: Path, names: Sequence[str]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _open_list(path: Path, table: ClassTable | None) -> MaskSet:
    """Pascal VOC: ImageSets/Segmentation/NAME.txt lists the files of JPEGImages/ and SegmentationClass/."""
    root = path.resolve().parents[2] if len(path.resolve().parents) > 2 else path.parent
    if not (root / "SegmentationClass").is_dir():
        raise ValueError(f"{path} is no list of Pascal VOC's: there is no folder {root / 'SegmentationClass'}.")
    stems = [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    names = [_with_suffix(root / "JPEGImages", stem) for stem in stems]
    if missing := [stem for stem, name in zip(stems, names, strict=True) if name is None]:
        raise FileNotFoundError(
            f"{path}: there is no image {missing[0]} in {root / 'JPEGImages'} ({len(missing):,} such)."
        )
    images = open_images([str(name) for name in names])
    images.names = stems
    masks = [root / "SegmentationClass" / f"{stem}.png" for stem in stems]
    own = table or find_table(root) or ClassTable(VOC, tuple(palette(len(VOC))))
    return _with_masks(images, [mask if mask.is_file() else None for mask in masks], own, root / "SegmentationClass")


def _with_suffix(folder: Path, stem: str) -> Path | None:
    return next(
        (folder / f"{stem}{suffix}" for suffix in (".jpg", ".png", ".jpeg") if (folder / f"{stem}{suffix}").is_file()),
        None,
    )


def _open_coco(path: Path, table: ClassTable | None) -> MaskSet:
    names, masks, classes = read_coco(path)
    images = open_images([str(name) for name in names])
    images.names = [name.name for name in names]
    return MaskSet(images, masks, table or ClassTable(("background", *classes)))


def _open_npz(path: Path, table: ClassTable | None) -> MaskSet:
    with np.load(path, allow_pickle=False) as archive:
        keys = [next((key for key in wanted if key in archive.files), None) for wanted in (IMAGE_KEYS, MASK_KEYS)]
        if None in keys:
            raise ValueError(f"{path} needs 'images' and 'masks'; it has {', '.join(archive.files)}.")
        return _pair(open_images(archive[keys[0]]), archive[keys[1]], table or find_table(path.parent))


def _pair(images: ImageSet, masks: Any, table: ClassTable | None) -> MaskSet:
    if isinstance(masks, (str, Path)):
        raise TypeError(f"Masks are a list, got {str(masks)!r}. A folder has both: images/ and masks/.")
    if len(masks) != len(images):
        raise ValueError(f"{len(images):,} images need as many masks, got {len(masks):,}.")
    return MaskSet(images, masks, table)


def _open_hf(dataset: Any, table: ClassTable | None) -> MaskSet:
    import datasets

    pictures = [name for name, feature in dataset.features.items() if isinstance(feature, datasets.Image)]
    mask = next((name for name in MASK_COLUMNS if name in pictures), None)
    others = [name for name in pictures if name != mask]
    if mask is None or len(others) != 1:
        raise ValueError(
            f"Expected an image column and one called 'mask'; the image columns are {', '.join(pictures)}."
        )
    raw = dataset.with_format(None).cast_column(mask, datasets.Image(decode=False))
    return MaskSet(open_images(dataset.select_columns([others[0]])), _Column(raw.select_columns([mask]), mask), table)


class _Column(Sequence[dict[str, Any]]):
    """The mask column of a Hugging Face dataset, as undecoded {"bytes", "path"}."""

    def __init__(self, dataset: Any, name: str) -> None:
        self.dataset, self.name = dataset, name

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: Any) -> Any:
        return self.dataset[i][self.name]


def _path(item: Any) -> Any:
    return item["path"] if isinstance(item, dict) else item


def _as_values(array: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, Any]:
    if array.ndim != 2 or array.dtype.kind not in "buif" or (array.dtype.kind == "f" and (array % 1 != 0).any()):
        raise ValueError(
            f"The mask of {name} must hold whole numbers in shape (H, W), got {array.dtype} {array.shape}."
        )
    values = array.astype(np.int64)
    if (values < 0).any():
        raise ValueError(f"The mask of {name} has negative values; use {IGNORE} where nothing counts.")
    return values


def _are_grey(colours: Sequence[Colour]) -> bool:
    return all(red == green == blue for red, green, blue in colours)


def _by_colour(pixels: Mask, colours: Sequence[Colour], name: str) -> np.ndarray[Any, Any]:
    """Position of each pixel's colour (H, W, 3) in the table.

    Raises:
        ValueError: A colour is not there.
    """
    packed = pixels.astype(np.int64) @ np.array([65536, 256, 1])
    known = np.array(colours, dtype=np.int64) @ np.array([65536, 256, 1])
    order = np.argsort(known)
    place = np.minimum(np.searchsorted(known[order], packed), len(known) - 1)
    values = order[place]
    if (wrong := known[values] != packed).any():
        colour = tuple(pixels[wrong][0].tolist())
        raise ValueError(
            f"The mask of {name} has the colour {colour}, which is no class's ({wrong.mean():.1%} of its pixels are of "
            "such colours). Add it to the class file, as void if it shall not count; JPEG files are no good for masks."
        )
    return values
