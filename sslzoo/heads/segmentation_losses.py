"""Losses of segmentation: of logits (B, K, H, W), class numbers (B, H, W) and weights of the classes, (K,) or None.

Pixels of class `IGNORE` count nowhere; where no pixel counts the loss is 0.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from sslzoo.joint import IGNORE

GAMMA = 2.0  # of the focal loss: "we found γ = 2 to work best" (Sec. 3.2)
SMOOTH = 1.0  # pixels added to both sides of Dice's fraction, for classes of few

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def cross_entropy(logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
    """-log p of the true class, a mean over pixels weighted by their class."""
    each = F.cross_entropy(logits, labels, weight, ignore_index=IGNORE, reduction="sum")
    return each / _weight_of(labels, weight).clamp(min=1e-8)


def focal(logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
    """-(1 - p)^γ log p of the true class. Lin et al. 2017, https://arxiv.org/abs/1708.02002, eq. 5."""
    log_p = -F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")  # (B, H, W), 0 where ignored
    of_class = 1.0 if weight is None else weight[labels.where(labels != IGNORE, 0)]
    each = -((1 - log_p.exp()) ** GAMMA) * log_p * of_class
    return each.sum() / _weight_of(labels, weight).clamp(min=1e-8)


def dice(logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
    """1 - 2 |P ∩ Y| / (|P| + |Y|) with probabilities, a mean over the classes of the batch.

    Milletari et al. 2016, https://arxiv.org/abs/1606.04797, eq. of Sec. 3, without squares.
    """
    known = labels != IGNORE
    p = logits.float().softmax(1) * known[:, None]
    y = F.one_hot(labels.where(known, 0), p.shape[1]).movedim(-1, 1) * known[:, None]  # (B, K, H, W)
    both, sizes = (p * y).sum((0, 2, 3)), (p + y).sum((0, 2, 3))
    there = y.sum((0, 2, 3)) > 0
    share = there if weight is None else there * weight
    each = 1 - (2 * both + SMOOTH) / (sizes + SMOOTH)
    return (each * share).sum() / share.sum().clamp(min=1e-8)


def _weight_of(labels: Tensor, weight: Tensor | None) -> Tensor:
    """Sum of the weights of all pixels that count."""
    known = labels != IGNORE
    return known.sum() if weight is None else weight[labels.where(known, 0)][known].sum()


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "dice": dice, "focal": focal}


def build(names: str) -> Loss:
    """A loss by its name, or the sum of several: "cross_entropy+dice".

    Raises:
        ValueError: There is no such loss.
    """
    parts = [name.strip() for name in names.split("+")]
    if strange := [name for name in parts if name not in LOSSES]:
        raise ValueError(f"Unknown loss {strange[0]!r}. There is: {', '.join(LOSSES)}, or a sum such as a+b.")
    return partial(_total, parts)


def _total(names: list[str], logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
    return torch.stack([LOSSES[name](logits, labels, weight) for name in names]).sum()
