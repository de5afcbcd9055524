import math

import torch

from sslzoo_evaluations.knn import fit, predict
from sslzoo_evaluations.protocol import Split


def test_votes_are_those_of_plain_loops():
    g = torch.Generator().manual_seed(0)
    train, test, labels = torch.randn(60, 5, generator=g), torch.randn(40, 5, generator=g), torch.arange(60) % 3
    expected = []
    for x in test:
        cosines = [float(x @ t / x.norm() / t.norm()) for t in train]
        nearest = sorted(range(60), key=lambda i: -cosines[i])[:7]
        votes = [sum(math.exp(cosines[i] / 0.1) for i in nearest if labels[i] == c) for c in range(3)]
        expected.append(votes.index(max(votes)))
    assert predict(train, labels, 3, 7, test).tolist() == expected


def test_scale_does_not_count_and_small_sets_use_all():
    train = Split(torch.randn(10, 1, 4, generator=torch.Generator().manual_seed(0)), torch.arange(10) % 2, 2)
    classify, settings = fit(train, 0)
    assert settings == {"k": 10, "temperature": 0.1}
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(1))
    assert torch.equal(classify(x), classify(x * 1000))


def test_only_centre_views_are_neighbours():
    centre = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    views = torch.cat([centre, centre.flip(0)], 1)  # the second view has the other class's features
    classify, _ = fit(Split(views, torch.tensor([0, 1]), 2), 0)
    assert classify(centre[:, 0]).tolist() == [0, 1]
