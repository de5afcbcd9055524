"""Features: images in, one row of numbers an image out.

X = embed(encoder, "photos")                           # (N, D) float32
embed_to_file(encoder, "photos", "features.npz")       # any number of images, resumable, any number of processes
read_features("features.npz").X
"""

import hashlib
import json
import os
import shutil
from collections.abc import Sized
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env

from sslzoo.data import EmptyDatasetError, ImageSet, UnreadableImageError, open_images
from sslzoo.encoding import Array, Batch, Positions, cut, encode
from sslzoo.feature_files import (
    Features,
    Rows,
    check_path,
    read_features,
    replacing,
    writable,
    write_features,
    write_table,
)

if TYPE_CHECKING:  # Encoder.embed calls this module
    from sslzoo.encoder import Encoder

__all__ = ["EmbedReport", "Features", "embed", "embed_readable", "embed_to_file", "read_features"]


def embed(
    encoder: "Encoder",
    images: Any,
    *,
    batch_size: int = 64,
    num_workers: int | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Array:
    """Return the features of images, in their order, computed in eval mode.

    Args:
        encoder: The encoder. Its modes (training or not) and its device are the same afterwards.
        images: Whatever `open_images` takes: a folder, paths, PIL images, arrays, tensors, ... Arrays and tensors hold
            images, in uint8 or float in [0, 1], of any size; they pass `encoder.transform` as files do. (For tensors
            that are normalised already, call the encoder itself.)
        batch_size: Images a step. Results do not depend on it, but for the last bits.
        num_workers: Threads that read images beside this one; None chooses.
        device: Where to compute; None is where the encoder is.
        progress: Show a progress bar.

    Returns:
        (N, D) float32; (0, D) for an empty list.

    Raises:
        sslzoo.data.UnreadableImageError: An image is damaged; names it. (`embed_to_file` skips such images.)
        sslzoo.data.EmptyDatasetError: A folder without images.
    """
    if isinstance(images, Sized) and not isinstance(images, (str, os.PathLike)) and len(images) == 0:
        return np.empty((0, encoder.num_features), dtype=np.float32)
    found = open_images(images)
    X = np.empty((len(found), encoder.num_features), dtype=np.float32)
    runs = cut(range(len(found)), batch_size)
    loop = encode(encoder, found, runs, total=len(found), num_workers=num_workers, device=device, progress=progress)
    with closing(loop) as batches:
        for batch in batches:
            for position, reason in batch.skipped:
                raise UnreadableImageError(found.names[position], reason)
            X[batch.index] = batch.features
    return X


def embed_readable(
    encoder: "Encoder",
    images: ImageSet,
    *,
    batch_size: int = 64,
    num_workers: int | None = None,
    progress: bool = False,
) -> tuple[Array, Positions, list[tuple[str, str]]]:
    """Return the features of those images that can be read.

    Returns:
        Features (n, D), the n positions in `images` that they belong to, and name and reason of each other image.
    """
    runs = cut(range(len(images)), batch_size)
    batches = list(encode(encoder, images, runs, total=len(images), num_workers=num_workers, progress=progress))
    return (
        np.concatenate([batch.features for batch in batches]),
        np.concatenate([batch.index for batch in batches]),
        [(images.names[position], reason) for batch in batches for position, reason in batch.skipped],
    )


@dataclass(frozen=True)
class EmbedReport:
    """What `embed_to_file` did.

    Attributes:
        path: The file.
        n_images: Rows in it.
        num_features: Columns in it.
        skipped: Name and reason of each image that could not be read; also in the file `path` + ".skipped.csv".
        n_resumed: How many images an earlier, interrupted call had done.
    """

    path: Path
    n_images: int
    num_features: int
    skipped: list[tuple[str, str]]
    n_resumed: int

    def __str__(self) -> str:
        text = f"{self.path}: {self.num_features:,} features of {self.n_images:,} images"
        if self.n_resumed:
            text += f", {self.n_resumed:,} of them from an earlier run"
        if self.skipped:
            text += f"; {len(self.skipped):,} could not be read, see {_skipped_file(self.path)}"
        return text


def embed_to_file(
    encoder: "Encoder",
    source: Any,
    out: str | Path,
    *,
    batch_size: int = 64,
    num_workers: int | None = None,
    device: torch.device | str | None = None,
    resume: bool = True,
    chunk: int = 2048,
    progress: bool = True,
) -> EmbedReport:
    """Write the features of a set of images of any size to a file; `read_features` reads it.

    Finished chunks are kept in the folder `out` + ".partial" until the file is complete: the same call, after an
    interruption, goes on from there (and does not try again what it could not read). Memory holds the names of all
    images and the features of one chunk.
    Started by `accelerate launch` or `torchrun`, the processes share the work, on one file system.

    Unreadable images are left out, and listed in `out` + ".skipped.csv".

    Args:
        encoder: The encoder.
        source: Whatever `open_images` takes; labels and classes are written too if it has any.
        out: Its suffix is the format: ".npz", ".npy" (with a .csv file beside it) or ".parquet".
        batch_size: Images a step.
        num_workers: Threads that read images, beside each process that encodes; None chooses.
        device: Where to compute; None is where the encoder is, or the device of each launched process.
        resume: Use what an interrupted call left. False starts anew.
        chunk: Images a chunk.
        progress: Show a progress bar.

    Raises:
        ValueError: Another suffix, or what was left is of another encoder, other images or another chunk size.
        sslzoo.data.EmptyDatasetError: There are no images, or none that can be read.
    """
    out = Path(out)
    check_path(out)
    if min(chunk, batch_size) < 1:
        raise ValueError(f"chunk and batch_size must be at least 1, got {chunk} and {batch_size}.")
    images = open_images(source)
    folder = out.with_name(f"{out.name}.partial")
    files = [folder / f"{i:08d}.npz" for i in range(-(-len(images) // chunk))]
    launch = _launch(device)
    rank, world = (launch.process_index, launch.num_processes) if launch else (0, 1)
    n_resumed = 0
    if rank == 0:
        _open_folder(folder, _manifest(encoder, images, chunk), resume)
        n_resumed = sum(min(chunk, len(images) - i * chunk) for i, file in enumerate(files) if file.is_file())
    if launch:
        launch.wait_for_everyone()
        device = device or launch.device
    mine = {i: files[i] for i in range(rank, len(files), world) if not files[i].is_file()}
    _encode_chunks(encoder, images, mine, chunk, batch_size, num_workers, device, progress and rank == 0)
    if launch:
        launch.wait_for_everyone()
    report = [_merge(out, images, encoder.num_features, files, n_resumed) if rank == 0 else None]
    if launch:
        broadcast_object_list(report)
    assert report[0] is not None
    return report[0]


def _launch(device: torch.device | str | None) -> PartialState | None:
    """The processes that a launcher started, or None for one alone.

    accelerate's state is one a process and fixes the device of every later `Accelerator`: not without need.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    wants_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available()
    return PartialState(cpu=wants_cpu if device is None else torch.device(device).type == "cpu")


def _open_folder(folder: Path, manifest: dict[str, Any], resume: bool) -> None:
    """Make the folder of chunks, or check that those in it belong to the same work."""
    file = folder / "manifest.json"
    if file.is_file() and not resume:
        shutil.rmtree(folder)
    if file.is_file():
        found = json.loads(file.read_text())
        if differing := [key for key, value in manifest.items() if found.get(key) != value]:
            raise ValueError(
                f"{folder} was begun with other {', '.join(differing)}, so it cannot be continued. Delete the folder, "
                "or pass resume=False to start anew."
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(file) as stream:
        stream.write(json.dumps(manifest, indent=2).encode())


def _manifest(encoder: "Encoder", images: ImageSet, chunk: int) -> dict[str, Any]:
    """What the chunks depend on; the keys are the words of the error message."""
    settings = {key: encoder.config[key] for key in ("architecture", "model_args", "pretrained_cfg")}
    return {
        "weights": _hash_weights(encoder),
        "encoder settings": json.loads(json.dumps(settings)),  # as it comes back from the file: no tuples
        "images": _hash_images(images),
        "chunk size": chunk,
    }


def _hash_weights(encoder: "Encoder") -> str:
    digest = hashlib.sha256()
    for name, tensor in encoder.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _hash_images(images: ImageSet) -> str:
    """Of all names and labels, and the pixels of eight images: arrays that differ have the same names, "000000", ..."""
    digest = hashlib.sha256("\0".join(images.names).encode("utf-8", "surrogatepass"))
    digest.update(json.dumps(images.classes).encode())
    digest.update(b"" if images.labels is None else images.labels.tobytes())
    for i in np.unique(np.linspace(0, len(images) - 1, 8, dtype=np.int64)).tolist():
        try:
            digest.update(images[i].tobytes())
        except UnreadableImageError as error:
            digest.update(error.reason.encode())
    return digest.hexdigest()


def _encode_chunks(
    encoder: "Encoder",
    images: ImageSet,
    files: dict[int, Path],
    chunk: int,
    batch_size: int,
    num_workers: int | None,
    device: torch.device | str | None,
    progress: bool,
) -> None:
    """Write the files of these chunks, one after the other. A batch never spans two chunks."""
    positions = [range(i * chunk, min((i + 1) * chunk, len(images))) for i in files]
    runs = (run for part in positions for run in cut(part, batch_size))
    total = sum(map(len, positions))
    loop = encode(encoder, images, runs, total=total, num_workers=num_workers, device=device, progress=progress)
    with closing(loop) as batches:
        for file, part in zip(files.values(), positions, strict=True):
            _write_chunk(file, list(islice(batches, -(-len(part) // batch_size))))


def _write_chunk(path: Path, batches: list[Batch]) -> None:
    skipped = [entry for batch in batches for entry in batch.skipped]
    with replacing(path) as file:
        np.savez(
            file,
            index=np.concatenate([batch.index for batch in batches]),
            features=np.concatenate([batch.features for batch in batches]),
            skipped=np.array([position for position, _ in skipped], dtype=np.int64),
            reasons=np.array([reason for _, reason in skipped], dtype=np.str_),
        )


def _merge(out: Path, images: ImageSet, num_features: int, files: list[Path], n_resumed: int) -> EmbedReport:
    """Stream the chunks into the file, and remove them."""
    indices: list[Positions] = []
    skipped: list[tuple[str, str]] = []
    for file in files:
        with np.load(file) as part:
            indices.append(part["index"])
            bad = zip(part["skipped"].tolist(), part["reasons"].tolist(), strict=True)
            skipped += [(writable(images.names[position]), writable(reason)) for position, reason in bad]
    index = np.concatenate(indices)
    if len(index) == 0:
        shutil.rmtree(files[0].parent)  # or the next call would not look at them again
        raise EmptyDatasetError(f"None of the {len(images):,} images can be read: {': '.join(skipped[0])}, ...")
    _skipped_file(out).unlink(missing_ok=True)
    if skipped:
        write_table(_skipped_file(out), ("name", "reason"), skipped)
    labels = None if images.labels is None else images.labels[index]
    rows = Rows([writable(images.names[i]) for i in index.tolist()], labels, images.classes)
    write_features(out, rows, num_features, (_features(file) for file in files))
    shutil.rmtree(files[0].parent)
    return EmbedReport(out, len(index), num_features, skipped, n_resumed)


def _features(chunk: Path) -> Array:
    with np.load(chunk) as part:
        return part["features"]


def _skipped_file(out: Path) -> Path:
    return out.with_name(f"{out.name}.skipped.csv")
