"""The vote of the nearest neighbours. Wu et al. 2018, https://arxiv.org/abs/1805.01978 (Sec. 3.4)."""

import torch
from torch import Tensor


def vote(cosine: Tensor, labels: Tensor, classes: int, k: int, temperature: float) -> Tensor:
    """Class of each image: each of its k nearest votes for its own class with exp(cosine / temperature).

    Args:
        cosine: (B, M) similarities of B images to M labelled ones; -inf for those that have no vote.
        labels: (M,) class numbers, int64.
        classes: How many there are.
        k: Neighbours that vote, at most M.
        temperature: The smaller, the less the farther ones count.

    Returns:
        (B,) class numbers.
    """
    nearest, neighbour = cosine.topk(k, dim=1)
    votes = torch.zeros(len(cosine), classes, device=cosine.device, dtype=cosine.dtype)
    votes.scatter_add_(1, labels[neighbour], ((nearest - 1) / temperature).exp())  # - 1: no overflow, same winner
    return votes.argmax(1)
