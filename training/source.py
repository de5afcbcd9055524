"""Images for pretraining as uint8 batches: one tensor in memory (on the GPU if it fits) or streamed by workers.

Both forms give the same bytes for the same index, so a run may be resumed on a machine with other memory.

An image whose header cannot be read is left out from the start. One that turns out to be damaged when its pixels
are decoded keeps its place, and the next readable image stands in for it: the length and the order of a run do not
depend on when the damage is found. Both are listed in `skipped`.
"""

import csv
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from sslzoo.data import EmptyDatasetError, ImageSet, UnreadableImageError, open_images
from sslzoo.feature_files import writable, write_table

T = TypeVar("T")
Size = tuple[int, int]  # (height, width)
Integers = np.ndarray[Any, np.dtype[np.integer[Any]]]


class Batch(NamedTuple):
    """Images and how large they were.

    Attributes:
        images: (B, 3, H, W) uint8, on the source's device.
        sizes: (B, 2) int64 on the CPU: the (height, width) of each image before it was squashed to (H, W).
    """

    images: Tensor
    sizes: Tensor


class Source:
    """Good images by index; see `open_source`.

    Attributes:
        names: The names of the images, in the order of the index.
        ignored: Files in the folder that are no images.
        in_memory: Whether all images are held as one tensor.
    """

    def __init__(
        self, decoder: "_Decoder", faults: dict[int, str], in_memory: bool, workers: int, device: str | torch.device
    ) -> None:
        whole = len(decoder.positions) == len(decoder.images)
        self.names = decoder.images.names if whole else decoder.images.subset(decoder.positions).names
        self.ignored = decoder.images.ignored
        self.in_memory = in_memory
        self._decoder = decoder
        self._faults = faults  # position in the image set: reason
        self._workers = workers
        self._device = torch.device(device)
        self._store = _load(decoder, faults, workers) if in_memory else None
        if self._store is not None and _fits_gpu(self._store.images, self._device):
            self._store = self._store._replace(images=self._store.images.to(self._device))

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        form = "in memory" if self.in_memory else "streamed"
        return f"{len(self):,} images ({form}), {len(self.skipped):,} unreadable, {len(self.ignored):,} other files"

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """(name, reason) of the images found unreadable so far."""
        return [(self._decoder.images.names[i], self._faults[i]) for i in sorted(self._faults)]

    def fetch(self, index: Tensor) -> Batch:
        """Return the images at these indices.

        Args:
            index: (B,) int64, any order, repeats allowed.
        """
        if self._store is not None:
            images = self._store.images.index_select(0, index.to(self._store.images.device))
            return self._to_device(Batch(images, self._store.sizes[index.cpu()]))
        return self._accept(self._decoder.batch(index.tolist(), self._workers))

    def loader(self, order: Tensor, batch_size: int, start: int = 0) -> Iterator[tuple[Tensor, Batch]]:
        """Yield (index, images) along `order`, in batches; the last one may be smaller.

        Args:
            order: (N,) int64 indices, one epoch or many.
            batch_size: Images a batch.
            start: Where in `order` to begin, in images. What lies before it is not read.
        """
        batches = torch.split(order[start:], batch_size) if start < len(order) else ()
        if self._store is not None:
            for index in batches:
                yield index, self.fetch(index)
            return
        streamed = DataLoader(
            self._decoder,
            batch_sampler=(index.tolist() for index in batches),
            num_workers=self._workers,
            collate_fn=_as_it_is,
            pin_memory=self._device.type == "cuda",
            worker_init_fn=_leave_interrupts_to_main,
            generator=torch.Generator(),  # by default it would draw from, and so move, the global one
        )
        for index, decoded in zip(batches, streamed, strict=True):
            yield index, self._accept(decoded)

    def write_skipped(
        self, folder: str | Path, others: Iterable[tuple[str, str]] = (), *, add: bool = False
    ) -> Path | None:
        """List the unreadable images, and the files that are none, in `folder`/skipped.csv; None if there are none.

        Args:
            folder: Where to.
            others: (name, reason) of what other processes found.
            add: Keep what the file lists already: a resumed run has not met all that it met before.
        """
        path = Path(folder) / "skipped.csv"
        found = {writable(name): writable(reason) for name, reason in [*others, *self.skipped]}
        no_images = {writable(name): "not an image file" for name in self.ignored}
        rows = (_listed(path) if add else {}) | found | no_images
        if not rows:
            return None
        write_table(path, ("name", "reason"), rows.items())
        return path

    def _accept(self, decoded: "_Decoded") -> Batch:
        self._faults.update(decoded.faults)
        return self._to_device(Batch(decoded.images, decoded.sizes))

    def _to_device(self, batch: Batch) -> Batch:
        images = batch.images
        if self._device.type == "cuda" and not images.is_cuda:
            images = images.pin_memory()  # so that the copy runs beside the GPU's work
        return Batch(images.to(self._device, non_blocking=True), batch.sizes)


def open_source(
    data: Any,
    *,
    store_size: int,
    memory_limit: int | None = None,
    workers: int | None = None,
    device: str | torch.device,
) -> Source:
    """Open images for pretraining.

    Images that all have one size, neither side above `store_size`, are stored as they are. Otherwise each is
    squashed to a square of `store_size` (bicubic, antialiased); `Batch.sizes` keeps what it was, so that a crop
    can have the right aspect.

    Args:
        data: Whatever `sslzoo.data.open_images` takes.
        store_size: Pixels.
        memory_limit: Bytes; a set that needs more is streamed. Default: a quarter of the memory that is free.
        workers: Threads or processes that decode. Default: one a CPU, at most 16.
        device: Where batches go. A set in memory is held there if it fits in half of the GPU's free memory.

    Raises:
        EmptyDatasetError: No image can be read.
    """
    images = open_images(data)
    workers = min(16, _cpus()) if workers is None else workers
    faults: dict[int, str] = {}
    sizes = _read_sizes(images, faults, workers)
    positions = np.flatnonzero(sizes[:, 0])
    if not len(positions):
        raise _nothing_readable(images, faults)
    decoder = _Decoder(images, positions, _stored_size(sizes[positions], store_size))
    limit = available_memory() // 4 if memory_limit is None else memory_limit
    return Source(decoder, faults, decoder.nbytes <= limit, workers, device)


def _listed(path: Path) -> dict[str, str]:
    """Reasons by name, of an earlier skipped.csv."""
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {row["name"]: row["reason"] for row in csv.DictReader(file)}


class _Decoded(NamedTuple):
    """A batch from the decoder, with the reasons of the images found unreadable on the way, by position."""

    images: Tensor
    sizes: Tensor
    faults: dict[int, str]


class _Decoder(Dataset[_Decoded]):
    """Decodes images of a set to uint8 (3, H, W). Worker processes each have a copy."""

    def __init__(self, images: ImageSet, positions: Integers, stored: Size) -> None:
        self.images = images
        self.positions = positions  # (N,) in the image set, of the images with a readable header
        self.stored = stored

    @property
    def nbytes(self) -> int:
        return len(self.positions) * 3 * self.stored[0] * self.stored[1]

    def __getitems__(self, indices: list[int]) -> _Decoded:
        """Decode a batch: what DataLoader calls, in one thread a worker."""
        return self.batch(indices, threads=1)

    def batch(self, indices: list[int], threads: int) -> _Decoded:
        """Decode the images at these indices."""
        images = np.empty((len(indices), 3, *self.stored), dtype=np.uint8)
        sizes = np.empty((len(indices), 2), dtype=np.int64)
        faults: dict[int, str] = {}

        def decode(slot: int) -> None:
            sizes[slot] = self.decode_or_next(indices[slot], images[slot], faults)

        _run(decode, range(len(indices)), threads)
        return _Decoded(torch.from_numpy(images), torch.from_numpy(sizes), faults)

    def decode_or_next(self, i: int, out: np.ndarray[Any, Any], faults: dict[int, str]) -> Size:
        """Decode image `i`, or the next readable one, into `out`; return its true size and note what failed."""
        for j in range(i, i + len(self.positions)):
            position = int(self.positions[j % len(self.positions)])
            try:
                return self.decode(position, out)
            except UnreadableImageError as error:
                faults[position] = error.reason
        raise _nothing_readable(self.images, faults)

    def decode(self, position: int, out: np.ndarray[Any, Any]) -> Size:
        """Decode one image of the set into `out` (3, H, W) and return its true (height, width)."""
        height, width = self.stored
        image, size = self.images.read(position, min_size=2 * max(height, width))
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)
        out[:] = np.asarray(image).transpose(2, 0, 1)
        return size


def _load(decoder: _Decoder, faults: dict[int, str], workers: int) -> Batch:
    """Decode every image once."""
    array = decoder.images.uint8_array()
    if array is not None and array.shape[2:] == decoder.stored:
        sizes = torch.tensor(decoder.stored).expand(len(array), 2)
        return Batch(torch.from_numpy(np.array(array, order="C")), sizes.contiguous())
    images = torch.empty((len(decoder.positions), 3, *decoder.stored), dtype=torch.uint8)
    true_sizes = torch.empty((len(decoder.positions), 2), dtype=torch.int64)
    slots, slot_sizes = images.numpy(), true_sizes.numpy()  # the same memory

    def decode(i: int) -> None:
        slot_sizes[i] = decoder.decode_or_next(i, slots[i], faults)

    _run(decode, range(len(decoder.positions)), workers, title="decoding images")
    return Batch(images, true_sizes)


def _read_sizes(images: ImageSet, faults: dict[int, str], workers: int) -> Integers:
    """Return the (height, width) of every image, (N, 2): 0 where the header cannot be read."""
    sizes = np.zeros((len(images), 2), dtype=np.int32)  # of millions of images, 8 bytes each

    def read(i: int) -> None:
        try:
            sizes[i] = images.size(i)
        except UnreadableImageError as error:
            faults[i] = error.reason

    _run(read, range(len(images)), workers, title="reading image headers")
    return sizes


def _stored_size(sizes: Integers, store_size: int) -> Size:
    height, width = sizes.max(0).tolist()
    common = bool((sizes == sizes[0]).all()) and max(height, width) <= store_size
    return (height, width) if common else (store_size, store_size)


def _run(work: Callable[[int], None], indices: range, threads: int, title: str | None = None) -> None:
    """Call `work` for every index, in threads (Pillow decodes outside the GIL), with a bar if it takes long."""
    chunk = max(1, min(256, len(indices) // (4 * max(threads, 1))))
    chunks = [indices[i : i + chunk] for i in range(0, len(indices), chunk)]

    def work_through(part: range) -> int:
        for i in part:
            work(i)
        return len(part)

    # disable=None: no bar where stderr is not a terminal
    with (
        ThreadPoolExecutor(max(threads, 1)) as pool,
        tqdm(total=len(indices), desc=title, unit=" images", delay=2, disable=True if title is None else None) as bar,
    ):
        for count in pool.map(work_through, chunks):
            bar.update(count)


def _nothing_readable(images: ImageSet, faults: dict[int, str]) -> EmptyDatasetError:
    first = [f"{images.names[i]}: {faults[i]}" for i in sorted(faults)[:5]]
    return EmptyDatasetError(f"None of the {len(images):,} images can be read. The first: " + "; ".join(first))


def _fits_gpu(store: Tensor, device: torch.device) -> bool:
    return device.type == "cuda" and store.nbytes <= torch.cuda.mem_get_info(device)[0] // 2


def _cpus() -> int:
    """CPUs that this process may use, which in a container can be fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory() -> int:
    """Bytes of memory that can still be had, within the container's limit if there is one."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux
        return 8 * 2**30
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):  # no such group, or "max": no limit
        return free
    return min(free, limit)


def _as_it_is(batch: T) -> T:
    return batch


def _leave_interrupts_to_main(_worker: int) -> None:
    """Ctrl-C reaches every process of the terminal; only the main one may decide to save and stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
