"""The features of each image at the last step that saw it, for methods that label by them instead of by a pass."""

import torch
from torch import Tensor, nn

from .blocks import gather_over_processes
from .clustering import all_sum
from .method import Backbone
from .sweep import Rows, Sweeps

LABELS_FROM = ("pass", "steps")


class RecordedFeatures(nn.Module):
    """What steps of training found, of all images: up to an epoch old, of random views, and free.

    As DeepCluster-v2 keeps its memory (Caron et al. 2020, https://arxiv.org/abs/2006.09882, Sec. 4, and its code). The
    same in every process, and a part of checkpoints: 2 bytes for each feature of each image.

    Args:
        images: N, of the data set.
        dim: D.
    """

    features: Tensor  # (N, D)

    def __init__(self, images: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("features", torch.zeros(images, dim, dtype=torch.float16))

    @torch.no_grad()
    def write(self, features: Tensor, index: Tensor) -> None:
        """Keep the features (B, D) of the images at positions (B,); those of all processes."""
        every, _ = gather_over_processes(features.float())
        positions, _ = gather_over_processes(index.double()[:, None])
        self.features[positions.squeeze(1).long()] = every.half()

    def fill(self, rows: Rows) -> None:
        """Keep the features of a pass, before any step."""
        everywhere = torch.zeros_like(self.features, dtype=torch.float32)
        everywhere[rows.positions.to(everywhere.device)] = rows.features.to(everywhere)
        self.features.copy_(all_sum(everywhere))

    def rows(self, sweeps: Sweeps) -> Rows:
        """Those of this process's share of the images."""
        positions = torch.arange(sweeps.rank, len(self.features), sweeps.processes)
        return Rows(positions, self.features[positions.to(self.features.device)].to(torch.float32))


def labelled_by(
    recorded: RecordedFeatures | None, sweeps: Sweeps, encoder: Backbone, step: int, *, augmented: bool
) -> Rows:
    """Features of this process's share of all images: those recorded, or of a pass, where there are none yet."""
    if recorded is not None and step:
        return recorded.rows(sweeps)
    rows = sweeps.features(encoder, step, augmented=augmented)
    if recorded is not None:
        recorded.fill(rows)
    return rows
