"""Files of features, written in parts so that a large set needs little memory: .npz, .npy and .parquet.

.npz      members features (N, D) float32, names (N,), and if there are labels: labels (N,) int64, classes (K,)
.npy      features (N, D) float32; name, label and class of each row stand in a .csv file of the same name
.parquet  columns name, label, class, features (a list of D float32)
"""

import csv
import json
import os
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any

import numpy as np

from sslzoo.encoding import Array

Labels = np.ndarray[Any, np.dtype[np.int64]]

SUFFIXES = (".npz", ".npy", ".parquet")
_ROWS = 4096  # names turned into an array at a time


@dataclass(frozen=True, eq=False)
class Rows:
    """What is known about each of N rows of features.

    Attributes:
        names: The images' paths, or their numbers.
        labels: (N,) int64, or None.
        classes: The names of the labels 0, 1, ..., or None.
    """

    names: list[str]
    labels: Labels | None
    classes: list[str] | None

    def class_names(self, start: int, stop: int) -> list[str] | None:
        """Names of the classes of some rows; None if classes have no names."""
        if self.labels is None or self.classes is None:
            return None
        return [self.classes[label] for label in self.labels[start:stop].tolist()]


@dataclass(frozen=True, eq=False)
class Features(Rows):
    """A file of features, read.

    Attributes:
        X: (N, D) float32.
    """

    X: Array


def check_path(path: Path) -> None:
    """Refuse a file that could not be written, before hours of work for it.

    Raises:
        ValueError: A suffix of no known format, or the path of a folder.
        ImportError: .parquet without pyarrow.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"Cannot write features to {path}: its suffix must be one of {', '.join(SUFFIXES)}.")
    if path.is_dir():
        raise IsADirectoryError(f"Cannot write features to {path}: it is a folder.")
    if path.suffix == ".parquet":
        _pyarrow()


def write_features(path: Path, rows: Rows, num_features: int, parts: Iterable[Array]) -> None:
    """Write features, a part at a time. The file appears under its name when it is complete.

    Args:
        path: Its suffix decides on the format; see `check_path`.
        rows: Name and label of all N rows.
        num_features: D.
        parts: Features (n, D) of the first n rows, of the next ones, and so on; the sizes may differ.
    """
    if path.suffix == ".parquet":
        _write_parquet(path, rows, num_features, parts)
        return
    shape = (len(rows.names), num_features)
    if path.suffix == ".npz":
        _write_npz(path, rows, shape, parts)
        return
    _write_csv(path.with_suffix(".csv"), rows)
    with replacing(path) as file:
        _write_array(file, shape, np.dtype(np.float32), parts)


def read_features(path: str | Path) -> Features:
    """Read a file that `embed_to_file` wrote.

    Raises:
        FileNotFoundError: No such file, or no .csv file beside a .npy file.
        ValueError: A file of another kind.
    """
    path = Path(path)
    if path.suffix == ".npz":
        return _read_npz(path)
    if path.suffix == ".npy":
        return _read_npy(path)
    if path.suffix == ".parquet":
        return _read_parquet(path)
    raise ValueError(f"Cannot read features from {path}: its suffix must be one of {', '.join(SUFFIXES)}.")


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a file beside `path` that takes its place at the end, on the disk by then; or goes if there is an error."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def writable(name: str) -> str:
    """Return a name as text: that of a file may hold any bytes, and those that are no text are written as escapes."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def write_table(path: Path, header: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a .csv file, whole or not at all."""
    with replacing(path) as file:
        text = TextIOWrapper(file, encoding="utf-8", newline="")
        writer = csv.writer(text)
        writer.writerow(header)
        writer.writerows(rows)
        text.detach()  # flushes, and leaves the file open


def _write_npz(path: Path, rows: Rows, shape: tuple[int, int], parts: Iterable[Array]) -> None:
    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        with _member(archive, "features") as member:
            _write_array(member, shape, np.dtype(np.float32), parts)
        for name, texts in (("names", rows.names), ("classes", rows.classes)):
            if texts is not None:
                dtype = np.dtype(f"<U{max(map(len, texts), default=1) or 1}")
                with _member(archive, name) as member:
                    _write_array(member, (len(texts),), dtype, _blocks(texts, dtype))
        if rows.labels is not None:
            with _member(archive, "labels") as member:
                _write_array(member, rows.labels.shape, np.dtype(np.int64), [rows.labels])


def _member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    info = zipfile.ZipInfo(f"{name}.npy")  # of 1980: the same features give the same file
    if name == "names":  # four bytes a letter, as wide as the longest
        info.compress_type = zipfile.ZIP_DEFLATED
    return archive.open(info, "w", force_zip64=True)


def _blocks(texts: list[str], dtype: np.dtype[Any]) -> Iterator[np.ndarray[Any, Any]]:
    for start in range(0, len(texts), _ROWS):
        yield np.array(texts[start : start + _ROWS], dtype=dtype)


def _write_array(
    file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any], parts: Iterable[np.ndarray[Any, Any]]
) -> None:
    """Write NumPy's own format, in parts along the first dimension."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    for part in parts:
        file.write(np.ascontiguousarray(part, dtype=dtype).tobytes())


def _write_csv(path: Path, rows: Rows) -> None:
    columns: dict[str, Iterable[Any] | None] = {
        "name": rows.names,
        "label": None if rows.labels is None else rows.labels.tolist(),
        "class": rows.class_names(0, len(rows.names)),
    }
    present = {name: values for name, values in columns.items() if values is not None}
    write_table(path, present, zip(*present.values(), strict=True))


def _write_parquet(path: Path, rows: Rows, num_features: int, parts: Iterable[Array]) -> None:
    pa, pq = _pyarrow()
    fields = [("name", pa.string())]
    if rows.labels is not None:
        fields.append(("label", pa.int64()))
        if rows.classes is not None:
            fields.append(("class", pa.string()))
    fields.append(("features", pa.list_(pa.float32(), num_features)))
    schema = pa.schema(fields, metadata={"sslzoo.classes": json.dumps(rows.classes)})
    start = 0
    with replacing(path) as file, pq.ParquetWriter(file, schema) as writer:
        for part in parts:
            stop = start + len(part)
            columns: dict[str, Any] = {"name": rows.names[start:stop], "class": rows.class_names(start, stop)}
            columns["label"] = None if rows.labels is None else rows.labels[start:stop]
            columns["features"] = pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), num_features)
            writer.write_table(pa.table({name: columns[name] for name, _ in fields}, schema=schema))
            start = stop


def _read_npz(path: Path) -> Features:
    with np.load(path, allow_pickle=False) as archive:
        if missing := {"features", "names"} - set(archive.files):
            raise ValueError(f"{path} has no {', '.join(sorted(missing))}; it has {', '.join(archive.files)}.")
        labels = archive["labels"] if "labels" in archive.files else None
        classes = archive["classes"].tolist() if "classes" in archive.files else None
        return Features(archive["names"].tolist(), labels, classes, archive["features"])


def _read_npy(path: Path) -> Features:
    with path.with_suffix(".csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    labels, classes = None, None
    if rows and "label" in rows[0]:
        labels = np.array([int(row["label"]) for row in rows], dtype=np.int64)
    if labels is not None and "class" in rows[0]:
        known = {int(row["label"]): row["class"] for row in rows}
        classes = [known.get(label, str(label)) for label in range(max(known) + 1)]
    return Features([row["name"] for row in rows], labels, classes, np.load(path, allow_pickle=False))


def _read_parquet(path: Path) -> Features:
    _, pq = _pyarrow()
    table = pq.read_table(path)
    num_features = table.schema.field("features").type.list_size
    flat = table["features"].combine_chunks().flatten().to_numpy()
    return Features(
        names=table["name"].to_pylist(),
        labels=table["label"].to_numpy() if "label" in table.column_names else None,
        classes=json.loads((table.schema.metadata or {}).get(b"sslzoo.classes", b"null")),
        X=flat.reshape(-1, num_features),
    )


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(".parquet files need pyarrow: pip install 'sslzoo[data]', or choose .npz.") from error
    return pyarrow, pyarrow.parquet
