"""BYOL: Bootstrap Your Own Latent. Grill et al. 2020, https://arxiv.org/abs/2006.07733 (Sec. 3, App. J pseudo-code).

sslzoo pretrain byol --data FOLDER --recipe cifar10 --out RUN
"""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..blocks import mlp, momentum_teacher, momentum_update
from ..method import Backbone, Method, Paper
from ..views import View

VIEW = View(
    size=224,
    scale=(0.08, 1.0),
    flip=0.5,
    jitter=0.8,
    brightness=0.4,
    contrast=0.4,
    saturation=0.2,
    hue=0.1,
    grayscale=0.2,
)


def byol_loss(p: Tensor, z: Tensor) -> Tensor:
    """Squared distance of the normalised vectors (Eq. 2): mean of 2 - 2 cos(p, z), in [0, 4]. p, z: (B, D)."""
    cosine = nn.functional.cosine_similarity(p.float(), z.float(), dim=1, eps=1e-12)
    return (2 - 2 * cosine).mean()


def tau_schedule(tau: float, progress: float) -> float:
    """Momentum of the target: `tau` at progress 0, 1 at progress 1, by a half cosine (Sec. 3.2)."""
    return 1 - (1 - tau) * (math.cos(math.pi * progress) + 1) / 2


class BYOL(Method):
    """The online network predicts the target network's projection of another view; the target is its moving average.

    Args:
        encoder: The online encoder f.
        hidden_dim: Width of the hidden layer of projector and predictor.
        dim: Size of the projections z and predictions p.
        tau: Momentum of the target at the start; it grows to 1.
    """

    PAPER = Paper(
        "Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning",
        "Grill, Jean-Bastien and others",
        2020,
        "https://arxiv.org/abs/2006.07733",
    )
    VIEWS = (replace(VIEW, blur=1.0), replace(VIEW, blur=0.1, solarize=0.2))  # asymmetric on purpose (App. B, Table 6)

    def __init__(self, encoder: Backbone, hidden_dim: int = 4096, dim: int = 256, tau: float = 0.99) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = mlp(encoder.num_features, hidden_dim, dim)  # g: no norm after the last layer
        self.predictor = mlp(dim, hidden_dim, dim)  # q
        self.target = momentum_teacher(nn.ModuleDict({"encoder": encoder, "projector": self.projector}))
        self.tau = tau

    def forward(self, views: list[Tensor], index: Tensor) -> dict[str, Tensor]:
        # one forward for each view: batch statistics must not mix the two
        z1, z2 = (self.projector(self.encoder(v)) for v in views)  # (B, dim) each
        p1, p2 = self.predictor(z1), self.predictor(z2)
        with torch.no_grad():  # the stop-gradient; the target's own BN uses batch statistics, as in the official code
            t1, t2 = (self.target["projector"](self.target["encoder"](v)) for v in views)
        # both orders summed, not averaged: the learning rates of the paper belong to the sum
        return {"loss": byol_loss(p1, t2) + byol_loss(p2, t1), "embedding": z1.detach()}

    def after_step(self, progress: float) -> None:
        tau = tau_schedule(self.tau, progress)
        momentum_update(self.target["encoder"], self.encoder, tau)
        momentum_update(self.target["projector"], self.projector, tau)
