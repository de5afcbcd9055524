"""Sets of images: folders, CSV files, arrays and Hugging Face datasets, opened without decoding a pixel.

images = open_images("photos")            # flat, nested, or one sub-folder a class
images[0], images.names[0], images.labels, images.classes
"""

import csv
import os
import re
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol, Self
from zipfile import BadZipFile

import numpy as np
from PIL import Image
from torch import Tensor

from sslzoo.images import (
    UnreadableImageError,
    channels_last,
    image_size,
    read_image,
    read_sized,
    tensor_to_array,
    to_image,
)
from sslzoo.names import Names

__all__ = [
    "IMAGE_SUFFIXES",
    "EmptyDatasetError",
    "ImageSet",
    "UnreadableImageError",
    "open_images",
    "read_image",
    "to_image",
    "unreadable",
]

# fmt: off
IMAGE_SUFFIXES = frozenset([
    ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm",
    ".tif", ".tiff", ".webp",
])
# fmt: on
IMAGE_KEYS = ("images", "x", "X", "data")
LABEL_KEYS = ("labels", "y", "targets")
PATH_COLUMNS = ("path", "image", "file", "filename", "file_name", "image_path", "name")
LABEL_COLUMNS = ("label", "class", "target", "category", "y")
SPLITS = frozenset(["train", "training", "val", "valid", "validation", "test", "testing", "unlabeled", "unlabelled"])

Labels = np.ndarray[Any, np.dtype[np.int64]]


class EmptyDatasetError(ValueError):
    """A source without a single usable image."""


class ImageSet:
    """An ordered set of images that are read when asked for: `images[i]` is an upright RGB `PIL.Image`.

    Made by `open_images`. It holds names, not pixels, and pickles, so that worker processes can have a copy.

    Attributes:
        names: One a image: the path relative to `root`, or its number ("000012") for images without a file name.
        labels: (N,) int64, or None.
        classes: The names of the labels 0, 1, ..., or None.
        root: The folder that `names` are relative to, or None.
        ignored: Files below `root` that are not images by their suffix, or are hidden.
        empty: Sub-folders of `root` that would be classes, had they an image.
    """

    def __init__(
        self,
        items: Sequence[Any] | None,
        names: Sequence[str],
        *,
        labels: Labels | None = None,
        classes: list[str] | None = None,
        root: Path | None = None,
        ignored: Sequence[str] | None = None,
        empty: list[str] | None = None,
    ) -> None:
        self._items = items  # what `_open` understands; None: the files root/name
        self._positions: range | Labels = range(len(names))  # of this set's images in _items
        self.names = names
        self.labels = labels
        self.classes = classes
        self.root = root
        self.ignored = ignored or []
        self.empty = empty or []

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> Image.Image:
        """Read image `i`.

        Raises:
            UnreadableImageError: The image is damaged. It is the caller's to skip it.
        """
        return self.read(i)[0]

    def __repr__(self) -> str:
        classes = f", {len(self.classes)} classes" if self.classes else ""
        return f"ImageSet({len(self):,} images{classes})"

    def read(self, i: int, min_size: int | None = None) -> tuple[Image.Image, tuple[int, int]]:
        """Read image `i` and its (height, width); see `images.read_sized` for `min_size`."""
        item = self._item(i)
        try:
            if isinstance(item, (str, BytesIO)):
                return read_sized(item, min_size)
            image = to_image(item)
        except UnreadableImageError as error:
            raise UnreadableImageError(self.names[i], error.reason) from error
        return image, (image.height, image.width)

    def size(self, i: int) -> tuple[int, int]:
        """Return the (height, width) of image `i`, from a file's header alone.

        Raises:
            UnreadableImageError: Not even the header can be read.
        """
        item = self._item(i)
        try:
            if isinstance(item, (str, BytesIO, Image.Image)):
                return image_size(item)
            array = channels_last(tensor_to_array(item) if isinstance(item, Tensor) else item)
        except UnreadableImageError as error:
            raise UnreadableImageError(self.names[i], error.reason) from error
        return array.shape[0], array.shape[1]

    def subset(self, indices: Sequence[int] | np.ndarray[Any, Any]) -> Self:
        """Return the images at these indices, in this order."""
        chosen = np.asarray(indices, dtype=np.int64)
        labels = None if self.labels is None else self.labels[chosen]
        names = self.names.take(chosen) if isinstance(self.names, Names) else [self.names[i] for i in chosen]
        part = type(self)(
            self._items, names, labels=labels, classes=self.classes, root=self.root, ignored=self.ignored,
            empty=self.empty,
        )  # fmt: skip
        part._positions = (
            np.arange(len(self))[chosen] if isinstance(self._positions, range) else self._positions[chosen]
        )
        return part

    def uint8_array(self) -> np.ndarray[Any, np.dtype[np.uint8]] | None:
        """Return all images as one (N, 3, H, W) view if they are an array of 8-bit grey or RGB images, else None."""
        if not isinstance(self._items, _Rows):
            return None
        array = self._items.array
        if array.dtype != np.uint8 or array.shape[-1] == 4:
            return None
        if not isinstance(self._positions, range):
            array = array[self._positions]
        rgb: np.ndarray[Any, Any] = np.broadcast_to(array, (*array.shape[:3], 3))
        return np.moveaxis(rgb, -1, 1)

    def _item(self, i: int) -> Any:
        """Return what image `i` is made from: a path (str), the bytes of a file, or an image in memory."""
        if self._items is None:
            return f"{self.root}/{self.names[i]}"
        item = self._items[int(self._positions[i])]
        if isinstance(item, dict):  # a Hugging Face image that is not decoded yet
            return item["path"] if item["bytes"] is None else BytesIO(item["bytes"])
        return item


class _Rows(Sequence[np.ndarray[Any, Any]]):
    """The images of an array, (N, H, W, C). Memory-mapped ones pickle as their path: np.memmap would copy the data."""

    def __init__(self, array: np.ndarray[Any, Any], path: Path | None = None) -> None:
        self.array = array
        self.path = path

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, i: Any) -> Any:
        return self.array[i]

    def __reduce__(self) -> tuple[Any, ...]:
        return (_Rows, (self.array,)) if self.path is None else (_npy_rows, (self.path,))


class _Column(Sequence[dict[str, Any]]):
    """The image column of a Hugging Face dataset, as undecoded {"bytes", "path"}."""

    def __init__(self, dataset: Any, name: str) -> None:
        self.dataset = dataset
        self.name = name

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: Any) -> Any:
        # a missing image is an image that cannot be read, not the end of the run
        return self.dataset[i][self.name] or {"bytes": b"", "path": None}


def open_images(source: Any, *, labels: Sequence[int] | Sequence[str] | Labels | None = None) -> ImageSet:
    """Open a set of images without decoding them.

    Args:
        source: A folder (if all its images lie in sub-folders, each sub-folder is a class), an image file, a `.csv`
            file of paths, relative to it, and labels (with or without a header), an `.npy` or `.npz` file (images
            under "images", "x", "X" or "data", labels under "labels", "y" or "targets"), a list of paths, PIL images,
            arrays or tensors, one array or tensor (N, H, W), (N, H, W, C) or (N, C, H, W), a Hugging Face dataset, or
            the folder one was saved to by `save_to_disk`.
        labels: One a image, numbers or names, instead of the source's own.

    Raises:
        EmptyDatasetError: There are no images.
        FileNotFoundError: There is no such file or folder; a row of a CSV file names one.
        ValueError: An ambiguous source, or as many labels as there are not images.
    """
    images = _open(source, own_labels=labels is None)
    if len(images) == 0:
        raise EmptyDatasetError(f"No images: the {type(source).__name__} is empty.")
    if labels is not None:
        images.labels, images.classes = _encode(labels, len(images))
    return images


class Readable(Protocol):
    """Images that are read one by one, such as an `ImageSet`, with whatever belongs to them."""

    def __len__(self) -> int: ...

    def read(self, i: int, min_size: int | None = None) -> Any:
        """Read image `i`; raises an `UnreadableImageError` if that cannot be done."""


def unreadable(images: Readable, *, num_threads: int = 1) -> dict[int, str]:
    """Read every image once, and tell which cannot be: position -> reason.

    JPEG files are decoded at an eighth of their size, which finds what is truncated just as well.
    """

    def reason(i: int) -> str | None:
        try:
            images.read(i, min_size=1)
        except UnreadableImageError as error:
            return error.reason
        return None

    with ThreadPoolExecutor(num_threads) as pool:  # Pillow decodes without holding Python's lock
        reasons = pool.map(reason, range(len(images)))
        return {i: why for i, why in enumerate(reasons) if why is not None}


def _open(source: Any, *, own_labels: bool) -> ImageSet:
    if isinstance(source, ImageSet):
        return source.subset(range(len(source)))
    if isinstance(source, (str, os.PathLike)):
        return _open_path(Path(source), own_labels)
    if isinstance(source, Tensor):
        return _open_array(tensor_to_array(source, stacked=True))
    if isinstance(source, np.ndarray):
        return _open_array(source)
    if isinstance(source, Image.Image):
        return _open_list([source])
    datasets = sys.modules.get("datasets")  # whoever holds such a dataset has imported it
    if datasets is not None and isinstance(source, (datasets.Dataset, datasets.DatasetDict)):
        return _open_hf(source, own_labels)
    if isinstance(source, Sequence):
        return _open_list(source)
    raise TypeError(
        f"Cannot take images from {type(source).__name__}: pass a folder, an .npy or .npz file, an array, a tensor, "
        "a list of paths or images, or a Hugging Face dataset with a length."
    )


def _open_path(path: Path, own_labels: bool) -> ImageSet:
    if path.is_dir():
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            return _open_hf(_load_from_disk(path), own_labels, folder=path)
        return _open_folder(path, own_labels)
    if not path.exists():
        raise FileNotFoundError(f"No such file or folder: {path}")
    if path.suffix.lower() == ".csv":
        return _open_csv(path, own_labels)
    if path.suffix.lower() == ".npy":
        rows = _npy_rows(path)
        return ImageSet(rows, _numbers(len(rows)))
    if path.suffix.lower() == ".npz":
        return _open_npz(path, own_labels)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return ImageSet(None, [path.name], root=path.parent)
    raise ValueError(f"Cannot take images from {path}: expected a folder, an image, or a .csv, .npy or .npz file.")


def _open_folder(root: Path, own_labels: bool) -> ImageSet:
    names, ignored = Names(), Names()
    tops: dict[str | None, int] = {}  # folders below the root, in the order of the walk
    codes: list[int] = []
    for name, is_image in _walk(root):
        if not is_image:
            ignored.append(name)
            continue
        names.append(name)
        top = name.partition("/")[0] if "/" in name else None
        codes.append(tops.setdefault(top, len(tops)))
    if not names:
        others = f" and found {len(ignored):,} other files ({ignored[0]}, ...)" if ignored else ""
        suffixes = " ".join(sorted(IMAGE_SUFFIXES))
        raise EmptyDatasetError(f"No images in {root}: looked below it for {suffixes}{others}.")
    classes = [top for top in tops if top is not None]
    if None in tops or not own_labels:
        return ImageSet(None, names, root=root, ignored=ignored)
    if SPLITS.issuperset(top.lower() for top in classes):
        split = next((name for name in classes if name.lower().startswith("train")), classes[0])
        raise ValueError(f"{root} holds splits, not classes: {', '.join(classes)}. Pass {root / split}.")
    with os.scandir(root) as scan:
        empty = [entry.name for entry in scan if entry.is_dir() and not entry.name.startswith(".")]
    empty = sorted(sorted(set(empty) - set(classes)), key=_natural)
    labels = np.array(codes, dtype=np.int64)
    return ImageSet(None, names, labels=labels, classes=classes, root=root, ignored=ignored, empty=empty)


def _open_csv(path: Path, own_labels: bool) -> ImageSet:
    rows, path_column, label_column = _read_csv(path)
    if not rows:
        raise EmptyDatasetError(f"{path} has no rows. It needs one a image: its path, relative to the file, and label.")
    columns = max(path_column, -1 if label_column is None else label_column) + 1
    if short := [line for line, row in rows if len(row) < columns or not row[columns - 1].strip()]:
        raise ValueError(f"{path}, line {short[0]}: no label or no path ({len(short):,} such rows).")
    names = [row[path_column].strip() for _, row in rows]
    lines = [line for line, _ in rows]
    if missing := [i for i, name in enumerate(names) if not (path.parent / name).is_file()]:
        raise FileNotFoundError(
            f"{path}, line {lines[missing[0]]}: there is no file {names[missing[0]]!r} ({len(missing):,} of "
            f"{len(names):,} rows). Paths are relative to {path.parent}."
        )
    found = ImageSet(None, names, root=path.parent)
    if own_labels and label_column is not None:
        found.labels, found.classes = _encode([row[label_column].strip() for _, row in rows], len(rows))
    return found


def _read_csv(path: Path) -> tuple[list[tuple[int, list[str]]], int, int | None]:
    """Line number and cells of each row but the header, and which cells are the path and the label, if there is one."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets write a byte order mark
            delimiter = max(",;\t", key=file.readline().count)  # and semicolons, in half of the world
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter)
            rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a CSV file in UTF-8: {error}.") from error
    if not rows or (path.parent / rows[0][1][0].strip()).is_file():
        return rows, 0, 1 if rows and len(rows[0][1]) > 1 else None
    header = [cell.strip().lower() for cell in rows[0][1]]
    path_name, label_name = _find(PATH_COLUMNS, header), _find(LABEL_COLUMNS, header)
    if path_name is not None:
        return rows[1:], header.index(path_name), None if label_name is None else header.index(label_name)
    if Path(header[0]).suffix in IMAGE_SUFFIXES:  # a row of data after all, whose file is missing
        return rows, 0, 1 if len(header) > 1 else None
    raise ValueError(
        f"{path}: its header is {', '.join(rows[0][1])}. Call the column of paths 'path' and that of labels 'label'."
    )


def _walk(root: Path) -> Iterator[tuple[str, bool]]:
    """Yield the files below a folder: name relative to it, and whether it is an image.

    In natural order ("2.png" before "10.png"), of which one folder at a time is held. Links to folders are followed,
    but not back into a folder they lie in. Hidden folders are left alone.
    """

    def visit(folder: str, prefix: str, above: tuple[str, ...]) -> Iterator[tuple[str, bool]]:
        real = os.path.realpath(folder)
        if real in above:
            return
        names, folders = [], set()
        with os.scandir(folder) as scan:
            for entry in scan:
                names.append(entry.name)
                if entry.is_dir():
                    folders.add(entry.name)
        names.sort()  # of names that are equal by their natural order
        names.sort(key=_natural)
        for name in names:
            hidden = name.startswith(".")
            if name in folders:
                if not hidden:
                    yield from visit(f"{folder}/{name}", f"{prefix}{name}/", (*above, real))
            else:
                suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 (a million times)
                yield prefix + name, not hidden and suffix in IMAGE_SUFFIXES

    return visit(str(root), "", ())


def _natural(name: str) -> str:
    """Sort key: digits by value, letters by value whatever their case; the same on every machine and locale.

    One text, smaller than a list of parts. A number is a zero, as no name has, then how many digits it has, then those.
    """
    return re.sub(r"[0-9]+", _number, name.casefold())


def _number(digits: re.Match[str]) -> str:
    significant = digits.group().lstrip("0")
    return f"\0{chr(len(significant))}{significant}"


def _open_array(array: np.ndarray[Any, Any]) -> ImageSet:
    rows = _Rows(_stack(array))
    return ImageSet(rows, _numbers(len(rows)))


def _stack(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return images of any layout, or one (H, W, C) image, as (N, H, W, C)."""
    if 0 in array.shape[1:]:
        raise ValueError(f"Images of shape {array.shape} have no pixels.")
    if array.ndim == 3 and array.shape[-1] in (3, 4):
        return channels_last(array)[None]
    if array.ndim == 3 and array.shape[0] == 3:
        raise ValueError(
            f"An array of shape {array.shape} may be one (C, H, W) image or three grey ones. "
            "Pass array[None] or array[..., None]."
        )
    return channels_last(array, stacked=True)


def _npy_rows(path: Path) -> _Rows:
    with _naming(path):
        return _Rows(_stack(np.load(path, mmap_mode="r", allow_pickle=False)), path)


def _open_npz(path: Path, own_labels: bool) -> ImageSet:
    with _naming(path), np.load(path, allow_pickle=False) as archive:
        key = _find(IMAGE_KEYS, archive.files)
        if key is None:
            raise ValueError(f"looked for the keys {', '.join(IMAGE_KEYS)}, it has {', '.join(archive.files)}.")
        images = _open_array(archive[key])
        label_key = _find(LABEL_KEYS, archive.files)
        if own_labels and label_key is not None:
            images.labels, images.classes = _encode(archive[label_key], len(images))
        return images


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file in the errors of NumPy and of this module."""
    try:
        yield
    except (TypeError, ValueError, EOFError, BadZipFile) as error:
        # unpickling would run code from the file
        pickled = "pickle" in str(error) or "Python objects" in str(error)
        hint = " Python objects are never read: save np.stack(images) instead." if pickled else ""
        raise ValueError(f"Cannot take images from {path}: {error}{hint}") from error


def _open_list(items: Sequence[Any]) -> ImageSet:
    for i, item in enumerate(items):
        if not isinstance(item, (str, os.PathLike, Image.Image, np.ndarray, Tensor)):
            raise TypeError(f"Item {i} is {type(item).__name__}: expected a path, PIL image, array or tensor.")
    numbers = _numbers(len(items))
    paths = [os.fspath(item) if isinstance(item, (str, os.PathLike)) else None for item in items]
    names = [number if path is None else path for number, path in zip(numbers, paths, strict=True)]
    return ImageSet([item if path is None else path for item, path in zip(items, paths, strict=True)], names)


def _open_hf(dataset: Any, own_labels: bool, folder: Path | None = None) -> ImageSet:
    import datasets

    if isinstance(dataset, datasets.DatasetDict):
        first = next(iter(dataset))
        how = f"dataset[{first!r}]" if folder is None else str(folder / first)
        raise ValueError(  # noqa: TRY004 (the type is fine, the choice is missing)
            f"This dataset has the splits {', '.join(dataset)}. Pass one of them: {how}."
        )
    features = dataset.features
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    column = _find(("image", "img"), images) or (images[0] if len(images) == 1 else None)
    if column is None:
        raise ValueError(f"Expected one column of type Image, or one called 'image'; the columns are {features}.")
    raw = dataset.with_format(None).select_columns([column]).cast_column(column, datasets.Image(decode=False))
    found = ImageSet(_Column(raw, column), _numbers(len(dataset)))
    label_columns = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if own_labels and label_columns:
        label = _find(("label",), label_columns) or label_columns[0]
        if len(label_columns) > 1 and label != "label":
            raise ValueError(f"Several label columns: {', '.join(label_columns)}. Pass labels=dataset[{label!r}].")
        found.labels = np.asarray(dataset.with_format(None)[label], dtype=np.int64)
        found.classes = list(features[label].names)
    return found


def _load_from_disk(path: Path) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            f"{path} is a Hugging Face dataset. Install its reader: pip install 'sslzoo[data]'"
        ) from error
    return datasets.load_from_disk(str(path))


def _encode(labels: Any, n: int) -> tuple[Labels, list[str] | None]:
    """Turn labels into int64, and names into numbers in natural order. (N, 1), as CIFAR is often saved, is (N,)."""
    array = np.asarray(labels)
    if array.shape == (n, 1):
        array = array[:, 0]
    if array.shape != (n,):
        raise ValueError(f"Expected {n:,} labels, one a image, got shape {array.shape}.")
    if array.dtype.kind in "US":
        classes = sorted({str(label) for label in array}, key=_natural)
        code = {name: i for i, name in enumerate(classes)}
        return np.array([code[str(label)] for label in array], dtype=np.int64), classes
    if array.dtype.kind not in "iub":
        raise TypeError(f"Labels are whole numbers or names, got {array.dtype}.")
    return array.astype(np.int64), None


def _find(wanted: Sequence[str], present: Sequence[str]) -> str | None:
    return next((name for name in wanted if name in present), None)


def _numbers(n: int) -> list[str]:
    return [f"{i:06d}" for i in range(n)]
