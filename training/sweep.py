"""Passes over the whole data set between two steps, for methods that label every image.

Each process takes its share of the images and keeps its own rows: nothing here needs all features in one memory.
"""

import tempfile
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sslzoo.modes import evaluating

from .method import Backbone
from .recipe import Settings
from .seeding import LABELS, SWEEP, generator_of
from .source import Batch, Source, available_memory
from .views import Part, View


class Rows(NamedTuple):
    """What a process knows of its share of the images.

    Attributes:
        positions: (n,) of the images in the data set, on the CPU. Every image is in one process's share.
        features: (n, D) float32.
    """

    positions: Tensor
    features: Tensor


@dataclass(frozen=True)
class Sweeps:
    """The whole data set, and when in the run it is looked at.

    Attributes:
        source: All images.
        view: The method's first view.
        settings: Of the run.
        folder: Where features go that do not fit into memory.
        processes: How many there are.
        rank: Which of them this is.
        device: Where the network is.
        steps_per_epoch: Optimizer steps.
        total: Optimizer steps of the whole run.
    """

    source: Source
    view: View
    settings: Settings
    folder: Path
    processes: int
    rank: int
    device: torch.device
    steps_per_epoch: int
    total: int

    def __len__(self) -> int:
        return len(self.source)

    def generator(self, step: int) -> torch.Generator:
        """Random numbers for labelling before this step; the same in every process."""
        return generator_of(self.settings.seed, step, LABELS)

    @torch.no_grad()
    def features(self, encoder: Backbone, step: int, *, augmented: bool) -> Rows:
        """Features of this process's share of all images.

        The batches are as large as those of training, and the last one is filled up with images seen before, whose
        rows are dropped: batch statistics over all processes need equal shares.

        Args:
            encoder: (B, 3, H, W) -> (B, D); keeps its modes.
            step: The step to come: seeds order and views.
            augmented: Random views in train mode, as in a step of training (so that batch norm also goes on averaging
                its statistics); else the whole image in eval mode, which leaves no trace.
        """
        view = self.view if augmented else self._whole_image
        order, own = self._share(step)
        table = self.table(len(order), encoder.num_features)
        half = torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16")
        start = 0
        with nullcontext() if augmented else evaluating(encoder), half:
            for number, (_, batch) in enumerate(self.source.loader(order, self._batch), start=1):
                generator = generator_of(self.settings.seed, step, SWEEP, number)
                images = own_view(view, batch, generator, self.processes, self.rank)
                table[start : start + len(images)] = encoder(images)
                start += len(images)
        return Rows(order[:own], table[:own])

    def table(self, rows: int, columns: int) -> Tensor:
        """An empty (rows, columns) float32 tensor: on the device, in memory or in a memory-mapped file, what it fits.

        The file is in the run's folder, and has no name: even a killed process leaves nothing behind.
        """
        bytes_ = 4 * rows * columns
        free = torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else available_memory()
        if bytes_ <= free // 4:
            return torch.empty(rows, columns, device=self.device)
        if bytes_ <= available_memory() // 4:
            return torch.empty(rows, columns)
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.folder) as file:
            return torch.from_numpy(np.memmap(file, np.float32, "w+", shape=(rows, columns)))

    @property
    def _whole_image(self) -> View:
        """The method's view without anything random; its numbers mean the same to the network."""
        view, whole = self.view, (1.0, 1.0)
        return View(view.size, whole, whole, view.interpolation, mean=view.mean, std=view.std)

    @property
    def _batch(self) -> int:
        """Images that this process takes at once."""
        return self.settings.batch_size // self.settings.accumulate // self.processes

    def _share(self, step: int) -> tuple[Tensor, int]:
        """Positions that this process goes over, and how many of them, from the first on, count."""
        images, batch = len(self), self._batch * self.processes
        order = torch.randperm(images, generator=generator_of(self.settings.seed, step, SWEEP))
        filled = torch.arange(-(-images // batch) * batch).view(-1, self.processes, self._batch)[:, self.rank].flatten()
        return order[filled % images], int((filled < images).sum())


def own_view(
    view: View, batch: Batch, generator: torch.Generator, processes: int, rank: int, part: Part = "all"
) -> Tensor:
    """A view of this process's images, (B, 3, size, size) or a part of it, with parameters drawn for the images of all.

    Args:
        view: What to draw.
        batch: B images of this process; the others have as many.
        generator: In the same state in all processes.
        processes: How many there are.
        rank: Which of them this is.
        part: Of the view, to make alone.
    """
    own = slice(rank * len(batch.sizes), (rank + 1) * len(batch.sizes))
    sizes = torch.ones(len(batch.sizes) * processes, 2, dtype=torch.int64)  # of the others: not needed here
    sizes[own] = batch.sizes.cpu()
    params = view.sample(sizes, generator)[own]
    return view.apply(batch.images, params, part)
