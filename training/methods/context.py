"""Unsupervised Visual Representation Learning by Context Prediction. Doersch, Gupta & Efros 2015.

https://arxiv.org/abs/1505.05192 (Sec. 3, 3.1)

sslzoo pretrain context --data FOLDER --recipe cifar10 --out RUN
"""

import torch
from torch import Tensor, nn

from ..blocks import mlp, one_of
from ..method import Backbone, Method, Paper
from ..patches import GRID, PATCHES, cut_patches, standardize
from ..views import View

CENTRE = 4
RING = (0, 1, 2, 3, 5, 6, 7, 8)  # label k means: the second patch lies where RING[k] lies from the centre (Fig. 2)
# the centre with each neighbour, in both orders: every label twice, and that of the swapped pair is 7 - k
FIRST, SECOND = (CENTRE,) * 8 + RING, RING + (CENTRE,) * 8
LABELS = (0, 1, 2, 3, 4, 5, 6, 7, 7, 6, 5, 4, 3, 2, 1, 0)
GREEN_MAGENTA = (-1.0, 2.0, -1.0)  # the axis along which lenses shift colours towards an image's border (Sec. 3.1)
COLORS = ("drop", "project", "keep")


def keep_one_channel(patches: Tensor, draws: Tensor) -> Tensor:
    """Leave each patch one random channel; the two others become 0.

    The paper fills them with noise of a hundredth of the patch's contrast, which says as little.

    Args:
        patches: (B, 9, 3, size, size).
        draws: (B, 9), uniform in [0, 1).
    """
    channel = (draws * 3).long()
    return patches * nn.functional.one_hot(channel, 3)[..., None, None]


def project_colors(patches: Tensor) -> Tensor:
    """Take out of each colour its part along green-magenta: B = I - a a^T / (a^T a). (…, 3, H, W) -> the same."""
    a = torch.tensor(GREEN_MAGENTA, device=patches.device).view(3, 1, 1)
    return patches - a * (patches * a).sum(-3, keepdim=True) / a.square().sum()


class Context(Method):
    """Tell in which of eight directions one patch of an image lies from another.

    Patches are encoded one by one and meet in the head. What gives directions away without any understanding is kept
    from them: gaps and jitter break lines that run on from patch to patch, and lenses shift colours by an amount that
    depends on the place in the image, so that no patch may have all of its colours.

    All patches of the grid are encoded once, and the centre is paired with each of its neighbours, in both orders.

    Args:
        encoder: The encoder f of a patch.
        patch: Side of a patch, as a part of the grid's spacing.
        jitter: Largest shift of a patch in each direction, as a part of the grid's spacing.
        color: "drop" all but a random channel of each patch, "project" colours to the plane without green-magenta, or
            "keep" them.
        dim: Size of a patch's embedding (fc6).
        hidden_dim: Width of the head's hidden layer (fc7).

    Raises:
        ValueError: Jitter can close the gap between patches, or `color` is none of the three.
    """

    PAPER = Paper(
        "Unsupervised Visual Representation Learning by Context Prediction",
        "Doersch, Carl and Gupta, Abhinav and Efros, Alexei A.",
        2015,
        "https://arxiv.org/abs/1505.05192",
    )
    # the grid of the paper lies anywhere in an image of 150 000 to 450 000 pixels; 3 x 3 cells of 144 are 186 624
    VIEWS = (View(size=432, scale=(0.4, 1.0), ratio=(1.0, 1.0)),)
    pairs: Tensor
    labels: Tensor

    def __init__(
        self,
        encoder: Backbone,
        patch: float = 96 / 144,
        jitter: float = 7 / 144,
        color: str = "drop",
        dim: int = 4096,
        hidden_dim: int = 4096,
    ) -> None:
        super().__init__()
        if patch + 2 * jitter >= 1:
            raise ValueError(f"patch = {patch} with jitter = {jitter} to both sides leaves no gap: needs less than 1.")
        one_of("color", color, COLORS)
        self.encoder = encoder
        # no scale and shift: activations cannot die, which left the loss at ln 8 (Sec. 3.2)
        norm = nn.BatchNorm1d(dim, affine=False)
        self.embed = nn.Sequential(nn.Linear(encoder.num_features, dim, bias=False), norm, nn.ReLU())
        self.head = mlp(2 * dim, hidden_dim, len(RING), out_bias=True)
        self.register_buffer("pairs", torch.tensor([FIRST, SECOND]).T, persistent=False)  # (16, 2)
        self.register_buffer("labels", torch.tensor(LABELS), persistent=False)
        self.patch, self.jitter, self.color = patch, jitter, color

    def draw(self, images: int, generator: torch.Generator) -> Tensor:
        """(images, 27): where each patch lies, down and across, and which channel it keeps."""
        return torch.rand(images, 3 * PATCHES, generator=generator)

    def forward(self, views: list[Tensor], index: Tensor) -> dict[str, Tensor]:
        images, draws = views
        where, channels = draws[:, : 2 * PATCHES].reshape(-1, PATCHES, 2), draws[:, 2 * PATCHES :]
        patches = standardize(self.patches(images, where, channels))
        features = self.encoder(patches.flatten(0, 1).contiguous(memory_format=torch.channels_last))  # (9 B, D)
        embedded = self.embed(features).unflatten(0, (-1, PATCHES))  # (B, 9, dim)
        logits = self.head(embedded[:, self.pairs].flatten(2).flatten(0, 1)).float()  # (16 B, 8)
        labels = self.labels.repeat(len(images))
        accuracy = (logits.argmax(1) == labels).float().mean()
        loss = nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "embedding": features.detach(), "accuracy": accuracy}

    def patches(self, images: Tensor, where: Tensor, channels: Tensor) -> Tensor:
        """Cut patches and take away what lenses did to their colours.

        Args:
            images: (B, 3, S, S).
            where: (B, 9, 2), uniform in [0, 1).
            channels: (B, 9), uniform in [0, 1).

        Returns:
            (B, 9, 3, size, size).
        """
        cell = images.shape[-1] // GRID
        size, jitter = int(self.patch * cell), int(self.jitter * cell)  # rounded down: a gap is left at any size
        patches = cut_patches(images, where, size, 2 * jitter)
        if self.color == "drop":
            return keep_one_channel(patches, channels)
        return project_colors(patches) if self.color == "project" else patches
