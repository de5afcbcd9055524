import math

import torch

from sslzoo.knn import vote


def test_votes_are_those_of_plain_loops() -> None:
    cosine = torch.rand(30, 50, generator=torch.Generator().manual_seed(0)) * 2 - 1
    labels = torch.arange(50) % 4
    expected = []
    for row in cosine.tolist():
        nearest = sorted(range(50), key=lambda i: -row[i])[:9]
        votes = [sum(math.exp(row[i] / 0.2) for i in nearest if labels[i] == c) for c in range(4)]
        expected.append(votes.index(max(votes)))
    assert vote(cosine, labels, 4, 9, 0.2).tolist() == expected


def test_excluded_neighbours_have_no_vote_and_small_temperatures_do_not_overflow() -> None:
    cosine = torch.tensor([[1.0, 0.9, -torch.inf]])
    assert vote(cosine, torch.tensor([0, 1, 1]), 2, 3, 1e-3).tolist() == [0]
    cosine = torch.tensor([[-torch.inf, 0.9, 0.1]])
    assert vote(cosine, torch.tensor([0, 1, 2]), 3, 2, 0.1).tolist() == [1]
