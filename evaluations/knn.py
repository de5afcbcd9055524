"""Cosine kNN on frozen features of centre views; k = 200, temperature 0.1, nothing to choose.

Wu et al. 2018, https://arxiv.org/abs/1805.01978 (Sec. 3.4): a neighbour votes for its class with
exp(cosine / temperature).

python -m sslzoo_evaluations knn byol-resnet18quarter-cifar10 --data cifar10
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from sslzoo.knn import vote

from .protocol import Split, evaluate

K = 200
TEMPERATURE = 0.1
BATCH = 1000


def main(argv: list[str]) -> int:
    """`python -m sslzoo_evaluations knn ID --data FOLDER`."""
    return evaluate("knn", fit, argv, views=0)


def fit(train: Split, seed: int) -> tuple[Callable[[Tensor], Tensor], Mapping[str, object]]:
    """Keep the training features. `seed` has nothing to decide."""
    k = min(K, len(train.labels))
    return partial(predict, train.features[:, 0], train.labels, train.classes, k), {"k": k, "temperature": TEMPERATURE}


def predict(train: Tensor, labels: Tensor, classes: int, k: int, features: Tensor) -> Tensor:
    """Class numbers (N,) of `features` (N, D), by vote of the k nearest of `train` (M, D) with `labels` (M,)."""
    bank = nn.functional.normalize(train, dim=1)
    parts = features.split(BATCH)  # type: ignore[no-untyped-call]
    return torch.cat(
        [vote(nn.functional.normalize(part, dim=1) @ bank.T, labels, classes, k, TEMPERATURE) for part in parts]
    )
