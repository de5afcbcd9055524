"""Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles. Noroozi & Favaro 2016.

https://arxiv.org/abs/1603.09246 (Sec. 3, Alg. 1)

sslzoo pretrain jigsaw --data FOLDER --recipe cifar10 --out RUN
"""

from itertools import chain, permutations
from math import factorial

import numpy as np
import torch
from torch import Tensor, nn

from ..blocks import mlp
from ..method import Backbone, Method, Paper
from ..patches import GRID, PATCHES, cut_patches, standardize
from ..views import View


def permutation_set(count: int, seed: int = 0) -> Tensor:
    """Permutations of nine tiles that differ in many places from each other (Alg. 1).

    Greedy: after a random first one, always the one whose nearest chosen permutation is farthest away. (The farthest
    on average, the other reading of the algorithm, leaves pairs that differ by one swap.)

    Returns:
        (count, 9) int64, the same for the same count and seed.

    Raises:
        ValueError: `count` is not in 2..9!.
    """
    if not 2 <= count <= factorial(PATCHES):
        raise ValueError(f"permutations = {count}: needs to be in 2..{factorial(PATCHES)}.")
    numbers = chain.from_iterable(permutations(range(PATCHES)))
    everything = np.fromiter(numbers, np.uint8).reshape(-1, PATCHES).T.copy()  # (9, 9!): sums run along rows
    chosen = [int(np.random.default_rng(seed).integers(everything.shape[1]))]
    nearest = np.full(everything.shape[1], PATCHES, np.uint8)  # Hamming distance to the nearest chosen one
    while len(chosen) < count:
        distance = (everything != everything[:, chosen[-1], None]).sum(0, dtype=np.uint8)
        np.minimum(nearest, distance, out=nearest)
        chosen.append(int(nearest.argmax()))
    return torch.from_numpy(everything[:, chosen].T.astype(np.int64))


class Jigsaw(Method):
    """Tell which of a set of permutations has shuffled the tiles of an image.

    Tiles are encoded one by one and know nothing of each other before the head. Edges and colours that run on from
    tile to tile would solve the puzzle without any understanding: so tiles have gaps between them, statistics of their
    own, and two of three images are grey.

    Args:
        encoder: The encoder f of a tile.
        permutations: Size of the set.
        puzzles: Permutations of each image that are solved in a step; they share its encoded tiles.
        tile: Side of a tile, as a part of its cell's; it lies anywhere in the cell.
        dim: Size of a tile's embedding (fc6).
        hidden_dim: Width of the head's hidden layer (fc7).
    """

    PAPER = Paper(
        "Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles",
        "Noroozi, Mehdi and Favaro, Paolo",
        2016,
        "https://arxiv.org/abs/1603.09246",
    )
    # 255 px as in the paper, grey as often as in Kolesnikov et al. 2019 (https://arxiv.org/abs/1901.09005)
    VIEWS = (View(size=255, scale=(0.5, 1.0), ratio=(1.0, 1.0), flip=0.5, grayscale=0.66),)
    permutations: Tensor

    def __init__(
        self,
        encoder: Backbone,
        permutations: int = 1000,
        puzzles: int = 1,
        tile: float = 64 / 85,
        dim: int = 512,
        hidden_dim: int = 4096,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.embed = nn.Sequential(nn.Linear(encoder.num_features, dim, bias=False), nn.BatchNorm1d(dim), nn.ReLU())
        self.head = mlp(PATCHES * dim, hidden_dim, permutations, out_bias=True)
        self.register_buffer("permutations", permutation_set(permutations))  # in the checkpoint: labels mean these
        self.puzzles, self.tile = puzzles, tile

    def draw(self, images: int, generator: torch.Generator) -> Tensor:
        """(images, 18 + puzzles): where each tile lies, down and across, and which permutations are used."""
        return torch.rand(images, 2 * PATCHES + self.puzzles, generator=generator)

    def forward(self, views: list[Tensor], index: Tensor) -> dict[str, Tensor]:
        images, draws = views
        where, which = draws[:, : 2 * PATCHES].reshape(-1, PATCHES, 2), draws[:, 2 * PATCHES :]
        cell = images.shape[-1] // GRID
        size = round(self.tile * cell)
        tiles = standardize(cut_patches(images, where, size, cell - size))
        features = self.encoder(tiles.flatten(0, 1).contiguous(memory_format=torch.channels_last))  # (9 B, D)
        embedded = self.embed(features).unflatten(0, (-1, PATCHES))  # (B, 9, dim)
        labels = (which * len(self.permutations)).long()  # (B, puzzles)
        logits = self.head(shuffle(embedded, self.permutations[labels]).flatten(2).flatten(0, 1)).float()
        labels = labels.flatten()
        accuracy = (logits.argmax(1) == labels).float().mean()
        loss = nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "embedding": features.detach(), "accuracy": accuracy}


def shuffle(tiles: Tensor, order: Tensor) -> Tensor:
    """Put tile `order[j]` of its image at place j.

    Args:
        tiles: (B, 9, D).
        order: (B, P, 9) permutations.

    Returns:
        (B, P, 9, D).
    """
    return tiles[torch.arange(len(tiles), device=tiles.device)[:, None, None], order]
