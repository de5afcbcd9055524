"""Mutual-information maximisation between the halves of an image. Tschannen et al. 2020 (Sec. 2, 3).

https://arxiv.org/abs/1907.13625

sslzoo pretrain mutual_information estimator=nwj --data FOLDER --recipe cifar10 --out RUN
"""

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ..blocks import gather_over_processes, one_of
from ..method import Backbone, Method, Paper
from ..views import Part, View

# An estimator takes scores f(x_i, y_j), (n, K): those rows of the K x K matrix that this process has. Row i has its one
# pair from p(x, y) in column `first` + i; its other columns are pairs from p(x) p(y).


def infonce(scores: Tensor, first: int = 0) -> Tensor:
    """I_NCE, in nats, at most log K: log K - the cross-entropy of picking each row's own column (Sec. 2).

    van den Oord et al. 2018, https://arxiv.org/abs/1807.03748
    """
    return (positives(scores, first) - scores.logsumexp(1)).mean() + math.log(scores.shape[1])


def nwj(scores: Tensor, first: int = 0) -> Tensor:
    """I_NWJ, in nats: E_p(x,y)[f] - E_p(x)p(y)[e^(f - 1)], best at f = 1 + log p(x, y) / (p(x) p(y)) (Sec. 2).

    Nguyen, Wainwright & Jordan 2010, https://arxiv.org/abs/0809.0853
    """
    return positives(scores, first).mean() - _mean((negatives(scores, first) - 1).exp())


def jensen_shannon(scores: Tensor, first: int = 0) -> Tensor:
    """Deep InfoMax's objective: a divergence of at most 2 log 2, not nats; best at f = log p(x, y) / (p(x) p(y)).

    Hjelm et al. 2019, https://arxiv.org/abs/1808.06670 (Eq. 4), with the two log 2 of its code: 0 where all f are.
    """
    joint = math.log(2) - softplus(-positives(scores, first)).mean()
    return joint - (_mean(softplus(negatives(scores, first))) - math.log(2))


def triplet(scores: Tensor, first: int = 0, margin: float = 1.0) -> Tensor:
    """Minus the triplet loss: [f(x, z) - f(x, y) + margin]_+, mean over all negatives z (Sec. 4)."""
    return -_mean((negatives(scores, first) - positives(scores, first)[:, None] + margin).relu())


def positives(scores: Tensor, first: int = 0) -> Tensor:
    """f(x_i, y_i): (n, K) -> (n,)."""
    return scores.diagonal(first)


def negatives(scores: Tensor, first: int = 0) -> Tensor:
    """(n, K): the scores, and -inf in place of f(x_i, y_i), whose e^f would drown the others in a sum."""
    own = torch.ones_like(scores, dtype=torch.bool).tril(first).triu(first)
    return scores.masked_fill(own, -torch.inf)


def _mean(terms: Tensor) -> Tensor:
    """Mean over K - 1 negatives of each row: (n, K), 0 for its positive."""
    return terms.sum() / (terms.numel() - len(terms))


ESTIMATORS: Mapping[str, Callable[[Tensor, int], Tensor]] = {
    "infonce": infonce,
    "nwj": nwj,
    "js": jensen_shannon,
    "triplet": triplet,
}


class Bilinear(nn.Module):
    """f(x, y) = x' W y."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(dim, dim) / dim)  # scores near 0 at first: NWJ takes e to their power

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x: (n, D), y: (K, D). Returns scores (n, K), as every critic does."""
        return x @ self.weight @ y.T


class Separable(nn.Module):
    """f(x, y) = g(x)' h(y) with a network of one hidden layer for each."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.g, self.h = (nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, hidden)) for _ in range(2))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x: (n, D), y: (K, D). Returns scores (n, K)."""
        return self.g(x) @ self.h(y).T


class Concat(nn.Module):
    """f(x, y) = a network of one hidden layer on [x; y]: all it learns of their relation stays in the critic."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.of_x, self.of_y = nn.Linear(dim, hidden), nn.Linear(dim, hidden, bias=False)  # one layer, in two parts
        self.score = nn.Linear(hidden, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x: (n, D), y: (K, D). Returns scores (n, K)."""
        hidden = (self.of_x(x)[:, None] + self.of_y(y)).relu()  # (n, K, hidden)
        return self.score(hidden).squeeze(2)


class InnerProduct(nn.Module):
    """f(x, y) = x' y."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x: (n, D), y: (K, D). Returns scores (n, K)."""
        return x @ y.T


class Distance(nn.Module):
    """f(x, y) = -|x - y|^2, of the triplet loss."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x: (n, D), y: (K, D). Returns scores (n, K)."""
        return 2 * x @ y.T - x.square().sum(1)[:, None] - y.square().sum(1)


CRITICS: Mapping[str, Callable[[int, int], nn.Module]] = {
    "bilinear": lambda dim, width: Bilinear(dim),
    "separable": lambda dim, width: Separable(dim, width),
    "concat": lambda dim, width: Concat(dim, 2 * width),
    "inner": lambda dim, width: InnerProduct(),
    "distance": lambda dim, width: Distance(),
}


HALVES: Mapping[str, tuple[Part, Part]] = {"rows": ("top", "bottom"), "columns": ("left", "right")}


class MutualInformation(Method):
    """Maximise a lower bound on the mutual information of what two networks make of the two halves of an image.

    The one half is that of the first view, the other that of the second.

    With estimator "infonce", critic "inner" and a shared encoder this is the multi-class N-pair loss, log K - I_NCE,
    and with "triplet" and "distance" the triplet loss (Sec. 4).

    Args:
        encoder: g1, of the top or left half; it is published.
        estimator: "infonce", "nwj", "js" (Deep InfoMax) or "triplet".
        critic: "bilinear", "separable", "concat", "inner" or "distance".
        critic_dim: Width of the two networks of the separable critic; half of that of the concat one.
        split: "rows": top and bottom half, or "columns": left and right half.
        shared: One encoder for both halves, instead of a g2 of its own for the other.
        target: Value to which the estimate is driven (Sec. 3.3); 0: as high as it goes.
    """

    PAPER = Paper(
        "On Mutual Information Maximization for Representation Learning",
        "Tschannen, Michael and Djolonga, Josip and Rubenstein, Paul K. and Gelly, Sylvain and Lucic, Mario",
        2020,
        "https://arxiv.org/abs/1907.13625",
    )
    # The paper augments nothing: both views are the image, and their halves its halves. Two crops with colours of their
    # own leave less to find that is on both sides of a cut and says nothing of the picture: a texture, the light.
    VIEWS = 2 * (View(size=224, scale=(1.0, 1.0), ratio=(1.0, 1.0)),)

    def __init__(
        self,
        encoder: Backbone,
        estimator: str = "infonce",
        critic: str = "bilinear",
        critic_dim: int = 100,
        split: str = "rows",
        shared: bool = False,
        target: float = 0.0,
    ) -> None:
        super().__init__()
        one_of("estimator", estimator, ESTIMATORS)
        one_of("critic", critic, CRITICS)
        one_of("split", split, HALVES)
        self.encoder = encoder  # g1
        self.other_encoder = None if shared else copy.deepcopy(encoder)  # g2: weights of its own
        self.critic = CRITICS[critic](encoder.num_features, critic_dim)
        self.estimator, self.split, self.target = estimator, split, target

    @classmethod
    def published_as(cls, settings: Mapping[str, Any]) -> str:
        return "infomax" if settings["estimator"] == "js" else str(settings["estimator"])

    def part(self, view: int) -> Part:
        return HALVES[self.split][view]

    def forward(self, views: list[Tensor], index: Tensor) -> dict[str, Tensor]:
        x, y = views  # halves of images
        x, y = self.encoder(x), (self.other_encoder or self.encoder)(y)  # (n, D) each
        with torch.autocast(x.device.type, enabled=False):  # bf16 has 8 bits, and scores go into exponents
            every_y, first = gather_over_processes(y.float())  # (K, D): the negatives are those of all processes
            scores = self.critic(x.float(), every_y)  # (n, K)
            estimate = ESTIMATORS[self.estimator](scores, first)
            loss = (estimate - self.target).abs() if self.target else -estimate
        return {"loss": loss, "embedding": x.detach(), **self._diagnostics(scores.detach(), first)}

    def _diagnostics(self, scores: Tensor, first: int) -> dict[str, Tensor]:
        """A bound in nats beside I_NCE's ceiling, and how often a row's own column has its highest score."""
        if self.estimator in ("nwj", "js"):
            nats = nwj(scores + (self.estimator == "js"), first)  # the best f of "js" lacks 1
        else:
            nats = infonce(scores, first)
        right = scores.argmax(1) == first + torch.arange(len(scores), device=scores.device)
        return {
            "nats": nats,
            "log_k": nats.new_full((), math.log(scores.shape[1])),
            "accuracy": right.float().mean(),
        }
