"""Colorful Image Colorization. Zhang, Isola & Efros 2016, https://arxiv.org/abs/1603.08511 (Sec. 2, 3.2).

sslzoo pretrain colorization --data FOLDER --recipe cifar10 --out RUN
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from sslzoo.lab import lightness, rgb_to_lab

from ..method import Backbone, Method, Paper
from ..views import View

# The 313 bins of the ab plane, 10 x 10 each, that lie in gamut: at each a, b goes from .. to. Those of the authors'
# pts_in_hull.npy; 52 of them are nearest to no colour of sRGB.
BINS = (
    (-90, 50, 90), (-80, 20, 90), (-70, 0, 90), (-60, -20, 90), (-50, -30, 100), (-40, -40, 100), (-30, -50, 100),
    (-20, -50, 100), (-10, -60, 100), (0, -70, 100), (10, -80, 90), (20, -80, 90), (30, -90, 90), (40, -100, 90),
    (50, -100, 80), (60, -110, 80), (70, -110, 80), (80, -110, 70), (90, -110, 70), (100, -90, 0),
)  # fmt: skip
REACH = 110.0  # a and b of sRGB lie within -REACH .. REACH
CELL = 5.0  # side of the squares into which that is cut to find a colour's bins
CELLS = round(2 * REACH / CELL)
COLOURLESS = 5  # an image whose a and b all lie within this teaches nothing
SHOWN = 16  # images of a batch that the diagnostics are taken of


def bin_centres() -> Tensor:
    """(313, 2): a and b of the bins."""
    return torch.tensor([(float(a), float(b)) for a, first, last in BINS for b in range(first, last + 1, 10)])


class SoftEncoding(nn.Module):
    """Spread colours over the nearest bins, by a Gaussian of the distance (Sec. 2.1, "soft-encoding scheme").

    Of the 313 bins only those are looked at that can be near a colour of its cell: exact, and without 313 distances a
    pixel.

    Args:
        neighbours: Bins that share a colour.
        sigma: Of the Gaussian, in units of ab.
    """

    centres: Tensor
    candidates: Tensor

    def __init__(self, neighbours: int, sigma: float) -> None:
        super().__init__()
        self.neighbours, self.sigma = neighbours, sigma
        centres = bin_centres()
        middles = torch.arange(-REACH + CELL / 2, REACH, CELL)
        distance = _squared(torch.cartesian_prod(middles, middles), centres).sqrt()  # (cells, Q)
        # a colour lies within r = CELL / sqrt(2) of the middle of its cell: its k-th neighbour within r + d_k of it,
        # where d_k is the middle's own, and so all its k neighbours within 2 r + d_k of the middle
        most = distance.kthvalue(neighbours, dim=1, keepdim=True).values + math.sqrt(2) * CELL
        count = int((distance <= most).sum(1).max())
        self.register_buffer("centres", centres, persistent=False)
        self.register_buffer("candidates", distance.topk(count, largest=False).indices, persistent=False)

    def forward(self, ab: Tensor) -> tuple[Tensor, Tensor]:
        """Colours (..., 2) -> bins (..., neighbours), nearest first, and their weights, which sum to 1."""
        cell = ((ab + REACH) / CELL).long().clamp(0, CELLS - 1)  # sRGB's colours all lie within
        candidates = self.candidates[cell[..., 0] * CELLS + cell[..., 1]]  # (..., C)
        squared = _squared(ab, self.centres[candidates])
        squared, order = squared.topk(self.neighbours, dim=-1, largest=False)
        return candidates.gather(-1, order), torch.softmax(-squared / (2 * self.sigma**2), dim=-1)


def _squared(ab: Tensor, centres: Tensor) -> Tensor:
    """Squared distances (..., Q) of colours (..., 2) and bins (Q, 2) or (..., Q, 2)."""
    return (ab[..., :1] - centres[..., 0]).square() + (ab[..., 1:] - centres[..., 1]).square()


def rebalancing(counts: Tensor, centres: Tensor, uniform: float, sigma: float) -> Tensor:
    """Weights of the bins, larger for rare colours: w ~ 1 / ((1 - uniform) p + uniform / Q), with E_p[w] = 1 (Eq. 4).

    As in the authors' code, bins that never occur have no part of the uniform distribution; they weigh nothing here.

    Args:
        counts: (Q,) how often each bin was the nearest one.
        centres: (Q, 2).
        uniform: Part of the uniform distribution, in [0, 1].
        sigma: Of the Gaussian that smooths the distribution p, in units of ab.
    """
    p = torch.softmax(-_squared(centres, centres) / (2 * sigma**2), dim=0) @ (counts / counts.sum()).to(centres)
    occurs = (counts > 0).to(p)
    weights = occurs / ((1 - uniform) * p + uniform * occurs / occurs.sum()).clamp(min=torch.finfo(p.dtype).tiny)
    return weights / (p * weights).sum()


def decode(logits: Tensor, centres: Tensor, temperature: float = 0.38) -> Tensor:
    """Annealed mean of the predicted distribution (Eq. 5): (..., Q) -> ab (..., 2).

    Temperature 1 gives the mean, which is grey; 0, in the limit, the mode, which is spotted.
    """
    return torch.softmax(logits / temperature, dim=-1) @ centres


class Colorization(Method):
    """Predict the distribution of each pixel's colour from the lightness of the image.

    The prior distribution of colours, which the rebalancing needs, is counted as training goes: after some steps it is
    that of the data, views included, and it is the same in all processes and in every resumed run.

    Args:
        encoder: The encoder f, of one channel. Its maps from `stride` on predict together, each through a layer of
            1 x 1, so that the encoder stays an ordinary one. (The paper has a network of its own, dilated at stride 8.)
        stride: Pixels between two predictions, and stride of the finest map.
        hidden_dim: Channels of the sum of these maps.
        neighbours: Bins over which a colour is spread (5 in the paper, 10 in the authors' code).
        sigma: Of the Gaussians that spread colours and smooth their distribution, in units of ab.
        uniform: Part of the uniform distribution in the rebalancing, lambda; 1 turns it off.
    """

    PAPER = Paper(
        "Colorful Image Colorization",
        "Zhang, Richard and Isola, Phillip and Efros, Alexei A.",
        2016,
        "https://arxiv.org/abs/1603.08511",
    )
    # 176 of 256 pixels and a mirror; the pixels as they are, since colours are measured in them
    VIEWS = (
        View(size=176, scale=(0.4727, 0.4727), ratio=(1.0, 1.0), flip=0.5, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
    )
    LIGHTNESS = True
    counts: Tensor

    def __init__(
        self,
        encoder: Backbone,
        stride: int = 4,
        hidden_dim: int = 128,
        neighbours: int = 5,
        sigma: float = 5.0,
        uniform: float = 0.5,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        stages: list[Any] = encoder.feature_info  # type: ignore[assignment]  # timm's
        self.stages = [i for i, stage in enumerate(stages) if stage["reduction"] >= stride]
        self.soft_encoding = SoftEncoding(neighbours, sigma)
        bins = len(self.soft_encoding.centres)
        self.head = Hypercolumn([stages[i]["num_chs"] for i in self.stages], hidden_dim, classes=bins)
        self.register_buffer("counts", torch.zeros(bins, dtype=torch.int64))
        self.stride, self.sigma, self.uniform = stride, sigma, uniform

    def forward(self, views: list[Tensor], index: Tensor) -> dict[str, Tensor]:
        rgb = views[0]
        with torch.autocast(rgb.device.type, enabled=False):  # colours need more than 8 bits
            grey = (lightness(rgb) - 50) / 25
            # one pixel of a square, not their mean, whose colour may be none of theirs
            ab = rgb_to_lab(rgb[..., :: self.stride, :: self.stride])[:, 1:].movedim(1, -1)  # (B, h, w, 2)
            bins, weights = self.soft_encoding(ab)  # (B, h, w, K) each
            if self.training:
                self._count(bins[..., 0])
            rare = rebalancing(self.counts, self.soft_encoding.centres, self.uniform, self.sigma)[bins[..., 0]]  # v(Z)
            coloured = ab.abs().amax((1, 2, 3)) > COLOURLESS  # (B,)

        encoder: Any = self.encoder
        last, maps = encoder.forward_intermediates(grey, indices=self.stages)
        logits = self.head(maps, ab.shape[1:3]).movedim(1, -1).float()  # (B, h, w, Q)
        entropy = -(weights * logits.log_softmax(-1).gather(-1, bins)).sum(-1)  # (B, h, w), of Z against log Zhat
        entropy = entropy * coloured[:, None, None]
        return {
            "loss": (rare * entropy).mean(),
            # the authors weigh the gradient only, and log this
            "cross_entropy": entropy.detach().mean(),
            "embedding": encoder.forward_head(last.detach()),
            **self._diagnostics(logits[:SHOWN].detach(), bins[:SHOWN, ..., 0]),
        }

    def _count(self, bins: Tensor) -> None:
        """Add the nearest bins of the images of all processes to the counts."""
        new = torch.zeros_like(self.counts).scatter_add_(0, bins.flatten(), torch.ones_like(bins).flatten())
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(new)
        self.counts += new

    def _diagnostics(self, logits: Tensor, bins: Tensor) -> dict[str, Tensor]:
        """A collapse is sepia: few bins predicted, little chroma, no better than always guessing the commonest."""
        predicted = logits.argmax(-1)
        share = nn.functional.one_hot(predicted.flatten(), logits.shape[-1]).float().mean(0)
        return {
            "accuracy": (predicted == bins).float().mean(),
            "constant_accuracy": (bins == self.counts.argmax()).float().mean(),
            "bins_entropy": torch.special.entr(share).sum(),
            "chroma": decode(logits, self.soft_encoding.centres).norm(dim=-1).mean(),
        }


class Hypercolumn(nn.Module):
    """Logits from maps of several strides: each through its own 1 x 1, all enlarged to one size and summed.

    Args:
        channels: Of each map.
        dim: Channels of the sum.
        classes: Of the logits.
    """

    def __init__(self, channels: Iterable[int], dim: int, classes: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(width, dim, 1, bias=False) for width in channels)
        self.out = nn.Sequential(nn.BatchNorm2d(dim), nn.ReLU(inplace=True), nn.Conv2d(dim, classes, 1))

    def forward(self, maps: list[Tensor], size: torch.Size) -> Tensor:
        """Maps (B, C, h, w) to logits (B, classes, *size)."""
        columns = [lateral(x) for lateral, x in zip(self.laterals, maps, strict=True)]
        return self.out(sum(interpolate(x, size, mode="bilinear", align_corners=False) for x in columns))
