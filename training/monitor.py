"""Is it learning or collapsing? Spread and effective rank of features, and kNN among labelled ones."""

import torch
from torch import Tensor, nn

from sslzoo.knn import vote


def feature_std(features: Tensor) -> float:
    """Spread of l2-normalised features: mean over dimensions of their std, times sqrt(D). 1: isotropic, 0: constant.

    Args:
        features: (N, D).
    """
    unit = nn.functional.normalize(features.float(), dim=1)
    return float(unit.std(0, correction=0).mean() * features.shape[1] ** 0.5)


def effective_rank(features: Tensor) -> float:
    """Number of directions that the features really use: exp(entropy of the spectrum of their covariance).

    Roy & Vetterli 2007, on squared singular values of the l2-normalised features. Between 1 (a line, or a constant)
    and min(N - 1, D).

    Args:
        features: (N, D).
    """
    centred = nn.functional.normalize(features.double(), dim=1)
    centred = centred - centred.mean(0)
    few = centred if centred.shape[0] >= centred.shape[1] else centred.T  # eigenvalues of the smaller Gram matrix
    spectrum = torch.linalg.eigvalsh(few.T @ few).clamp_min(0)
    total = spectrum.sum()
    if total <= 1e-12:
        return 1.0
    p = spectrum / total
    return float(torch.exp(-(p * p.clamp_min(1e-30).log()).sum()))


def collapse_signs(std: float, rank: float) -> list[str]:
    """What points to a collapse, in words; empty when nothing does.

    Args:
        std: `feature_std` of what the method compares.
        rank: `effective_rank` of the same.
    """
    signs = []
    if std < MIN_STD:
        signs.append(f"feature std {std:.3f} (healthy is near 1, a constant output has 0)")
    if rank < MIN_RANK:
        signs.append(f"effective rank {rank:.1f} (a collapsing SimSiam falls below 2.5, a healthy one passes 5)")
    return signs


# the std alone is a weak alarm: SimSiam without its stop-gradient kept 0.50 (healthy: 0.94) while its rank fell to 1.8
# (healthy: 5.5), both after 120 steps on CIFAR-10
MIN_STD = 0.2
MIN_RANK = 2.5


def leave_one_out_knn(features: Tensor, labels: Tensor, k: int = 20, temperature: float = 0.1) -> float:
    """Accuracy in [0, 1] of cosine kNN where every image is classified by all the others.

    Args:
        features: (N, D).
        labels: (N,) class numbers.
        k: Neighbours that vote.
        temperature: A vote weighs exp(cosine / temperature).
    """
    unit = nn.functional.normalize(features.float(), dim=1)
    k, classes = min(k, len(unit) - 1), int(labels.max()) + 1
    correct = 0
    for start in range(0, len(unit), 1024):
        cosine = unit[start : start + 1024] @ unit.T  # (b, N)
        own = torch.arange(len(cosine), device=unit.device)
        cosine[own, own + start] = -torch.inf
        found = vote(cosine, labels, classes, k, temperature)
        correct += int((found == labels[start : start + 1024]).sum())
    return correct / len(unit)
