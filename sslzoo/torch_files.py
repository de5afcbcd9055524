"""Files of `torch.save`, read without running anything that is in them: both the zip form and the one before it.

with open_torch(Path("checkpoint_0099.pth.tar")) as tree:
    tree["state_dict"]["module.encoder.conv1.weight"].read()     # tensors are read when they are asked for
with open_torch(Path("pretrained.zip"), member="resnet-10x3k.pth") as tree:     # a file within an archive

`torch.load(weights_only=True)` runs nothing either, but it reads all of a file, inflates compressed members, and
refuses files that hold a logger's history beside their weights.
"""

import math
import shutil
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from tempfile import TemporaryFile
from typing import Any, BinaryIO

import torch
from torch import Tensor

from sslzoo.pickles import NUMPY, Inert, Maker, Names, PickleError, read_pickle, sizes, table

ZIP = b"PK\x03\x04"  # the first bytes of an archive
# An archive may make so many bytes of each of its own: weights hardly compress.
MOST_INFLATED = 4
MAGIC = 0x1950A86A20F9469CFC6C  # the first thing in a file of the old form
DTYPES = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}


class TorchFileError(ValueError):
    """A file is damaged, no file of torch.save, or asks for what is not allowed here."""


@dataclass(frozen=True)
class Storage:
    """Numbers in a file.

    Attributes:
        file: What has them.
        key: Their name there.
        dtype: Their type.
        count: How many there are, as the pickle says.
    """

    file: "_TorchFile"
    key: str
    dtype: torch.dtype
    count: int

    @property
    def bytes(self) -> int:
        """Their size."""
        return self.count * self.dtype.itemsize


@dataclass(frozen=True)
class Stored:
    """A tensor in a file.

    Attributes:
        storage: Its numbers, perhaps among others.
        offset: Of its first one.
        shape: Its shape.
        stride: Of its dimensions, in numbers.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def read(self) -> Tensor:
        """Read it: a copy of its own.

        Raises:
            TorchFileError: The file has fewer bytes for it.
        """
        numbers = self.storage.file.numbers(self.storage)
        return torch.as_strided(numbers, self.shape, self.stride, self.offset).clone(
            memory_format=torch.contiguous_format
        )


class _TorchFile(ABC):
    """A file that is open, and what was read of it last: tensors often share a storage."""

    def __init__(self) -> None:
        self._last: tuple[str, Tensor] | None = None

    def numbers(self, storage: Storage) -> Tensor:
        if self._last is None or self._last[0] != storage.key or self._last[1].dtype != storage.dtype:
            data = bytearray(self.content(storage)) if storage.count else bytearray()
            empty = torch.empty(0, dtype=storage.dtype)
            self._last = storage.key, torch.frombuffer(data, dtype=storage.dtype) if storage.count else empty
        return self._last[1]

    @abstractmethod
    def content(self, storage: Storage) -> bytes:
        """The bytes of a storage."""


class _Zip(_TorchFile):
    """The form since torch 1.6: a zip archive of a pickle and a member for each storage, none of them compressed."""

    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        super().__init__()
        self.archive = archive
        members = archive.infolist()
        packed = [
            m.filename for m in members if m.compress_type != zipfile.ZIP_STORED or m.file_size != m.compress_size
        ]
        if packed:
            raise TorchFileError(f"member {packed[0][:80]!r} is compressed, which torch.save never does.")
        if sum(member.file_size for member in members) > size:
            raise TorchFileError("its members have more bytes than the file.")
        names = [member.filename for member in members]
        pickles = [name for name in names if name.endswith("/data.pkl") or name == "data.pkl"]
        if len(pickles) != 1 or len(set(names)) != len(names):
            raise TorchFileError(f"it has {len(pickles)} members data.pkl, or two of one name: no file of torch.save.")
        self.root = pickles[0].removesuffix("data.pkl")
        if strangers := [name for name in names if not name.startswith(self.root) or ".." in name]:
            raise TorchFileError(f"member {strangers[0][:80]!r} lies outside of its folder {self.root[:80]!r}.")
        if f"{self.root}byteorder" in names and archive.read(f"{self.root}byteorder") != b"little":
            raise TorchFileError("its numbers are big-endian.")
        self.members = {member.filename: member for member in members}

    def tree(self, size: int) -> Any:
        data = self.archive.read(f"{self.root}data.pkl")
        return read_pickle(BytesIO(data), _names(), justified=size, persistent=lambda pid: _storage(self, pid))

    def content(self, storage: Storage) -> bytes:
        member = self.members.get(f"{self.root}data/{storage.key}")
        if member is None or member.file_size != storage.bytes:
            found = f"{member.file_size} bytes" if member else "none"
            raise TorchFileError(f"storage {storage.key!r} needs {storage.bytes} bytes, the file has {found}.")
        return self.archive.read(member)


class _Old(_TorchFile):
    """The form before torch 1.6: five pickles, then for each storage its length and its bytes."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        super().__init__()
        self.file, self.size = file, size
        self.places: dict[str, tuple[int, int]] = {}  # key -> number of numbers, place of the first
        self.declared: dict[str, Storage] = {}

    def tree(self) -> Any:
        if self._pickle() != MAGIC:
            raise TorchFileError("it is no file of torch.save.")
        version, system = self._pickle(), self._pickle()
        if version != 1001 or not isinstance(system, dict) or not system.get("little_endian"):
            raise TorchFileError("it was written by an unknown torch, or on a big-endian machine.")
        tree, keys = self._pickle(), self._pickle()
        if not isinstance(keys, list):
            raise TorchFileError("it has no list of its storages.")
        place = self.file.tell()
        for key in keys:
            if not isinstance(key, str) or key not in self.declared or key in self.places:
                raise TorchFileError("its list of storages does not fit its tensors.")
            self.file.seek(place)
            count = int.from_bytes(self.file.read(8), "little")
            if count != self.declared[key].count:
                raise TorchFileError(
                    f"storage {key!r} is announced as {self.declared[key].count} numbers, has {count}."
                )
            self.places[key] = count, place + 8
            place += 8 + self.declared[key].bytes
            if place > self.size:
                raise TorchFileError(f"it is truncated: {place - self.size} bytes of storage {key!r} are missing.")
        return tree

    def _pickle(self) -> Any:
        return read_pickle(self.file, _names(), justified=self.size, persistent=self._declare)

    def _declare(self, pid: Any) -> Storage:
        storage = _storage(self, pid)
        if self.declared.setdefault(storage.key, storage) != storage:
            raise TorchFileError(f"storage {storage.key!r} is announced twice, with other sizes.")
        return storage

    def content(self, storage: Storage) -> bytes:
        if storage.key not in self.places:
            raise TorchFileError(f"storage {storage.key!r} is not in the file.")
        self.file.seek(self.places[storage.key][1])
        return self.file.read(storage.bytes)


@contextmanager
def open_torch(path: Path, *, member: str | None = None) -> Iterator[Any]:
    """Open a file of `torch.save`; its tensors are `Stored`, to be read before it is closed.

    Args:
        path: The file, or an archive that has it.
        member: What it is called in the archive, whatever folder it lies in there.

    Raises:
        TorchFileError: Damaged, truncated, no such file, or it asks for what is not allowed.
    """
    try:
        with path.open("rb") as file:
            if member is None or not _is_archive(file):
                yield _tree(file, path.stat().st_size)
            else:
                with TemporaryFile() as inflated:
                    size = _inflate(file, path.stat().st_size, member, inflated)
                    yield _tree(inflated, size)
    except PickleError as error:
        raise TorchFileError(str(error)) from error
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError) as error:
        raise TorchFileError(f"it is truncated, or damaged: {str(error) or type(error).__name__}.") from error


def _tree(file: Any, size: int) -> Any:
    file.seek(0)
    if file.read(4) == ZIP:
        return _Zip(zipfile.ZipFile(file), size).tree(size)
    file.seek(0)
    return _Old(file, size).tree()


def _is_archive(file: BinaryIO) -> bool:
    """Whether it is a zip, but not one of torch.save."""
    if file.read(4) != ZIP:
        return False
    with zipfile.ZipFile(file) as archive:
        return not any(PurePosixPath(name).name == "data.pkl" for name in archive.namelist())


def _inflate(file: BinaryIO, size: int, name: str, into: Any) -> int:
    """Write a member of an archive, which is found by its name, into another file. Returns its size."""
    with zipfile.ZipFile(file) as archive:
        found = [member for member in archive.infolist() if PurePosixPath(member.filename).name == name]
        if len(found) != 1:
            names = ", ".join(repr(member.filename[:40]) for member in archive.infolist()[:8]) or "none"
            raise TorchFileError(f"it has {len(found)} members {name!r} and needs one; there are: {names}.")
        (member,) = found
        parts = PurePosixPath(member.filename).parts
        if ".." in parts or "/" in parts or "\\" in member.filename:
            raise TorchFileError(f"member {member.filename[:80]!r} lies outside of its archive.")
        if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise TorchFileError(f"member {name!r} is encrypted, or compressed otherwise than archives of weights are.")
        if member.file_size > MOST_INFLATED * size:
            raise TorchFileError(
                f"member {name!r} says that it has {member.file_size:,} bytes, the archive has {size:,}."
            )
        with archive.open(member) as content:
            shutil.copyfileobj(content, into, 1 << 20)  # no more than it says that it has
        if into.tell() != member.file_size:
            raise TorchFileError(f"member {name!r} has {into.tell():,} bytes, not {member.file_size:,} as it says.")
        return member.file_size


def _storage(file: _TorchFile, pid: Any) -> Storage:
    """What a persistent id stands for: ("storage", type, key, device, count), and in the old form a view, or None."""
    if not (isinstance(pid, tuple) and len(pid) in (5, 6) and pid[0] == "storage" and pid[5:] in ((), (None,))):
        raise PickleError("it refers to something that is no storage.")
    _, dtype, key, _, count = pid[:5]
    if not isinstance(dtype, torch.dtype) or not isinstance(key, str) or type(count) is not int or count < 0:
        raise PickleError("it has a storage without type, name or size.")
    return Storage(file, key, dtype, count)


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> Stored:
    shape, stride = sizes(shape), sizes(stride)
    if not isinstance(storage, Storage) or type(offset) is not int or offset < 0 or len(shape) != len(stride):
        raise PickleError("a tensor without storage, or whose strides do not fit its shape.")
    count = math.prod(shape)
    last = offset + sum((length - 1) * step for length, step in zip(shape, stride, strict=True))
    if count > storage.count or (count and last >= storage.count):
        raise PickleError(f"a tensor of shape {shape} needs more than the {storage.count} numbers of its storage.")
    return Stored(storage, offset, shape, stride)


def _parameter(tensor: Any, *_: Any) -> Stored:
    if not isinstance(tensor, Stored):
        raise PickleError("a parameter without tensor.")
    return tensor


def _names() -> Names:
    """What these files name. A logger's history (OpenMMLab's) is read as nothing."""
    nothing = Maker(lambda *_: Inert())
    return {
        **NUMPY,
        ("torch._utils", "_rebuild_tensor_v2"): Maker(_tensor),
        ("torch._utils", "_rebuild_tensor"): Maker(_tensor),
        ("torch._utils", "_rebuild_parameter"): Maker(_parameter),
        ("torch", "Size"): Maker(tuple),
        ("torch.nn.parameter", "Parameter"): Maker(_parameter),
        ("collections", "Counter"): Maker(table),
        ("torch", "device"): nothing,
        **{("torch", str(dtype).removeprefix("torch.")): Inert() for dtype in DTYPES.values()},
        **{("torch", f"{name}Storage"): dtype for name, dtype in DTYPES.items()},
        ("mmengine.logging.history_buffer", "HistoryBuffer"): nothing,
        ("__builtin__", "getattr"): nothing,
    }
