"""The loop that all embedding goes through: read images, in workers or here, and encode them a batch at a time."""

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from sslzoo.data import ImageSet, UnreadableImageError

if TYPE_CHECKING:  # Encoder.embed ends up here
    from sslzoo.encoder import Encoder

Array = np.ndarray[Any, np.dtype[np.float32]]
Positions = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, eq=False)
class Batch:
    """Features of the images of one batch that can be read.

    Attributes:
        index: (b,) positions of the readable ones.
        features: (b, D) float32.
        skipped: Position of each of the others, and what is wrong with it.
    """

    index: Positions
    features: Array
    skipped: list[tuple[int, str]]


def cut(positions: range, batch_size: int) -> Iterator[list[int]]:
    """Cut positions into batches."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    for start in range(0, len(positions), batch_size):
        yield list(positions[start : start + batch_size])


def encode(
    encoder: "Encoder",
    images: ImageSet,
    runs: Iterable[list[int]],
    *,
    total: int,
    num_workers: int = 0,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Generator[Batch]:
    """Encode images in eval mode, a batch at a time; nothing is kept of a batch.

    The encoder is back in its modes and on its device when the generator ends or is closed.

    Args:
        encoder: The encoder.
        images: The set.
        runs: Positions in the set, of the images of each batch.
        total: How many images these are, for the progress bar.
        num_workers: Processes that read images beside this one.
        device: Where to compute; None is where the encoder is.
        progress: Show a progress bar.
    """
    with _computing(encoder, device) as parameter, tqdm(total=total, unit="image", disable=not progress) as bar:
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
            yield Batch(np.array(index, dtype=np.int64), features, skipped)


_Sample = tuple[int, Tensor | str]  # position in the set, and the input or the reason why there is none


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
