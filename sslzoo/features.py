"""Features: images in, one row of numbers an image out.

X = embed(encoder, "photos")                           # (N, D) float32
"""

from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from sslzoo.data import ImageSet, UnreadableImageError, open_images

if TYPE_CHECKING:  # Encoder.embed calls this module
    from sslzoo.encoder import Encoder

Array = np.ndarray[Any, np.dtype[np.float32]]
_Sample = tuple[int, Tensor | str]  # position in the set, and the input or the reason why there is none


def embed(
    encoder: "Encoder",
    images: Any,
    *,
    batch_size: int = 64,
    num_workers: int = 0,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Array:
    """Return the features of images, in their order. The encoder computes in eval mode and float32 here.

    Args:
        encoder: The encoder. Its modes (training or not) and its device are the same afterwards.
        images: Whatever `open_images` takes: a folder, paths, PIL images, arrays, tensors, ... Arrays and tensors hold
            images, in uint8 or float in [0, 1], of any size; they pass `encoder.transform` as files do. (For tensors
            that are normalised already, call the encoder itself.)
        batch_size: Images a step. Results do not depend on it, but for the last bits.
        num_workers: Processes that read images beside this one.
        device: Where to compute; None is where the encoder is.
        progress: Show a progress bar.

    Returns:
        (N, D) float32; (0, D) for an empty list.

    Raises:
        sslzoo.data.UnreadableImageError: An image is damaged; names it. (`embed_to_file` skips such images.)
        sslzoo.data.EmptyDatasetError: A folder without images.
    """
    if isinstance(images, Sized) and not isinstance(images, (str, PathLike)) and len(images) == 0:
        return np.empty((0, encoder.num_features), dtype=np.float32)
    found = open_images(images)
    X = np.empty((len(found), encoder.num_features), dtype=np.float32)
    runs = _runs(range(len(found)), batch_size)
    for batch in _encode(encoder, found, runs, num_workers=num_workers, device=device, progress=progress):
        for position, reason in batch.skipped:
            raise UnreadableImageError(found.names[position], reason)
        X[batch.index] = batch.features
    return X


def embed_readable(
    encoder: "Encoder", images: ImageSet, *, batch_size: int = 64, num_workers: int = 0, progress: bool = False
) -> tuple[Array, np.ndarray[Any, np.dtype[np.int64]], list[tuple[str, str]]]:
    """Return the features of those images that can be read.

    Returns:
        Features (n, D), the n positions in `images` that they belong to, and name and reason of each other image.
    """
    runs = _runs(range(len(images)), batch_size)
    batches = list(_encode(encoder, images, runs, num_workers=num_workers, progress=progress))
    return (
        np.concatenate([batch.features for batch in batches]),
        np.concatenate([batch.index for batch in batches]),
        [(images.names[position], reason) for batch in batches for position, reason in batch.skipped],
    )


@dataclass(frozen=True)
class _Batch:
    index: np.ndarray[Any, np.dtype[np.int64]]  # (b,) positions in the set
    features: Array  # (b, D)
    skipped: list[tuple[int, str]]  # position and reason


class _Inputs(Dataset[_Sample]):
    """What the encoder takes, image by image. A damaged image is a value here: workers garble exceptions."""

    def __init__(self, images: ImageSet, encoder: "Encoder") -> None:
        self.images = images
        self.transform = encoder.transform

    def __getitem__(self, i: int) -> _Sample:
        try:
            return i, self.transform(self.images[i])
        except UnreadableImageError as error:
            return i, error.reason


def _collate(samples: list[_Sample]) -> tuple[list[int], Tensor, list[tuple[int, str]]]:
    good = [(i, value) for i, value in samples if isinstance(value, Tensor)]
    bad = [(i, value) for i, value in samples if isinstance(value, str)]
    return [i for i, _ in good], torch.stack([x for _, x in good]) if good else torch.empty(0), bad


def _runs(positions: range, batch_size: int) -> Iterator[list[int]]:
    """Cut positions into batches."""
    for start in range(0, len(positions), batch_size):
        yield list(positions[start : start + batch_size])


def _encode(
    encoder: "Encoder",
    images: ImageSet,
    runs: Iterable[list[int]],
    *,
    num_workers: int = 0,
    device: torch.device | str | None = None,
    progress: bool = False,
    done: int = 0,
) -> Iterator[_Batch]:
    """Encode the images at these positions, a batch each run; a batch is in memory until the caller drops it.

    Args:
        encoder: The encoder.
        images: The set.
        runs: Positions of each batch.
        num_workers: Processes that read.
        device: Where to compute; None is where the encoder is.
        progress: Show a progress bar.
        done: Where the progress bar starts.
    """
    with (
        _computing(encoder, device) as parameter,
        tqdm(total=len(images), initial=done, unit="image", disable=not progress) as bar,
    ):
        loader: Iterable[tuple[list[int], Tensor, list[tuple[int, str]]]] = DataLoader(
            _Inputs(images, encoder),
            batch_sampler=runs,
            num_workers=num_workers,
            collate_fn=_collate,
            pin_memory=parameter.device.type == "cuda",
        )
        for index, inputs, skipped in loader:
            features = np.empty((0, encoder.num_features), dtype=np.float32)
            if index:
                inputs = inputs.to(parameter, non_blocking=True, memory_format=torch.channels_last)
                with torch.inference_mode():
                    features = encoder(inputs).float().cpu().numpy()
            bar.update(len(index) + len(skipped))
            yield _Batch(np.array(index, dtype=np.int64), features, skipped)


@contextmanager
def _computing(encoder: "Encoder", device: torch.device | str | None) -> Iterator[Tensor]:
    """Put the encoder into eval mode on a device, and back. Gives one of its parameters, for device and dtype."""
    home = next(encoder.parameters()).device
    modes = [(module, module.training) for module in encoder.modules()]  # each its own: parts may be frozen
    try:
        yield next(encoder.eval().to(device or home).parameters())
    finally:
        encoder.to(home)
        for module, training in modes:
            module.training = training
