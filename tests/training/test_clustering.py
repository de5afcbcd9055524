"""Sinkhorn, whitening, k-means and the uniform order against POT, lightly, scikit-learn, faiss and closed forms."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor
from torch.nn.functional import normalize

from sslzoo_training import clustering
from sslzoo_training.clustering import (
    Anderson,
    best_clusters,
    by_position,
    cluster_figures,
    kmeans,
    sinkhorn,
    uniform_order,
    whiten_,
)

CPU = torch.device("cpu")
N, K = 60, 7


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plan(scores: Tensor, **more: float) -> Tensor:
    """(N, K) the balanced assignment Q."""
    return (scores + sinkhorn(scores, len(scores), CPU, **more)).softmax(1) / len(scores)


def test_sinkhorn_is_optimal_transport() -> None:
    ot = pytest.importorskip("ot")
    log_p, lamb = numbers(N, K).log_softmax(1), 10.0
    a, b = np.full(N, 1 / N), np.full(K, 1 / K)
    expected = ot.sinkhorn(a, b, -log_p.numpy(), reg=1 / lamb, numItermax=20000, stopThr=1e-13)
    got = plan(lamb * log_p, tolerance=1e-12, max_iterations=20000)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-10)
    exact = ot.emd(a, b, -log_p.numpy())  # as lambda grows, the cheapest assignment of all
    sharp = plan(1000 * log_p, tolerance=1e-9, max_iterations=20000)
    assert float((sharp * log_p).sum()) == pytest.approx(float((exact * log_p.numpy()).sum()), abs=1e-3)


@pytest.mark.parametrize("rounds", [1, 3, 50])
def test_sinkhorn_is_lightlys_round_by_round(rounds: int) -> None:
    swav = pytest.importorskip("lightly.loss.swav_loss")
    scores = (numbers(N, K) / 0.3).log_softmax(1)  # theirs begins with the clusters, ours with the images
    expected = swav.sinkhorn(scores, iterations=rounds, epsilon=1.0)
    torch.testing.assert_close(
        plan(scores, tolerance=0.0, max_iterations=rounds, memory=0) * N, expected, atol=1e-12, rtol=0
    )


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One item for each round of Sinkhorn-Knopp."""
    done: list[None] = []

    def counted(x: Tensor) -> Tensor:
        done.append(None)
        return x

    monkeypatch.setattr(clustering, "all_sum", counted)
    return done


@pytest.mark.parametrize(("clusters", "spread"), [(8, 3.0), (30, 10.0)])
def test_accelerated_rounds_find_the_same_plan_in_fewer(clusters: int, spread: float, rounds: list[None]) -> None:
    scores, plans, counts = spread * numbers(200, clusters), [], []
    for memory in (0, 10):
        rounds.clear()
        plans.append(plan(scores, tolerance=1e-10, max_iterations=5000, memory=memory))
        counts.append(len(rounds))
    torch.testing.assert_close(*plans, atol=1e-11, rtol=0)
    assert counts[1] < counts[0] / 2


def test_a_start_near_by_saves_rounds_and_is_left_as_it_is(rounds: list[None]) -> None:
    scores = 10 * numbers(500, 30)
    start = sinkhorn(scores, 500, CPU, tolerance=1e-3)
    copy, from_nothing = start.clone(), len(rounds)
    rounds.clear()
    moved = scores + 0.1 * numbers(500, 30, seed=1)
    again = sinkhorn(moved, 500, CPU, start=start, tolerance=1e-3)
    assert len(rounds) < from_nothing / 2
    assert torch.equal(start, copy)
    masses = (moved + again).softmax(1).mean(0)
    assert float((masses - 1 / 30).abs().sum()) <= 1e-3


def test_a_leap_that_leads_away_is_taken_back() -> None:
    steps = Anderson(memory=5)
    first, second = torch.zeros(2), torch.tensor([1.0, 0.0])
    assert torch.equal(steps.next(first, second, error=3.0), first + second)
    leap = steps.next(second, change := torch.tensor([0.5, 0.1]), error=2.0)
    assert not torch.equal(leap, second + change)
    assert torch.equal(steps.next(leap, torch.ones(2), error=2.5), second + change)  # the plain round from `second`
    assert torch.equal(steps.next(leap, change, error=9.0), leap + change)  # a plain round is never taken back


def test_images_are_exact_and_clusters_within_the_tolerance() -> None:
    for tolerance in (1e-1, 1e-3, 1e-9):
        q = plan(5 * numbers(N, K), tolerance=tolerance)
        assert (q >= 0).all()
        torch.testing.assert_close(q.sum(1), torch.full((N,), 1 / N, dtype=torch.float64), atol=1e-15, rtol=0)
        assert float((q.sum(0) - 1 / K).abs().sum()) <= tolerance


def test_constants_change_nothing_and_order_only_the_order() -> None:
    scores = 5 * numbers(N, K)
    q = plan(scores, tolerance=1e-13)
    shifted = scores + 40 * numbers(N, 1, seed=1) + 40 * numbers(1, K, seed=2)
    torch.testing.assert_close(plan(shifted, tolerance=1e-13), q, atol=1e-12, rtol=0)
    generator = torch.Generator().manual_seed(3)
    rows, columns = torch.randperm(N, generator=generator), torch.randperm(K, generator=generator)
    torch.testing.assert_close(plan(scores[rows][:, columns], tolerance=1e-13), q[rows][:, columns], atol=1e-12, rtol=0)


def test_identical_images_go_everywhere_alike() -> None:
    q = plan(numbers(1, K).expand(N, K), tolerance=1e-12)
    torch.testing.assert_close(q, torch.full((N, K), 1 / (N * K), dtype=torch.float64))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.float64, 1e-6)])
def test_scores_far_beyond_the_range_of_exp_are_balanced(dtype: torch.dtype, tolerance: float) -> None:
    scores = 25 * numbers(N, K).to(dtype)
    scores[:, 0] += 5000
    assert torch.exp(scores - scores.amax(1, keepdim=True))[:, 1:].max() == 0  # all that a product of masses would see
    q = plan(scores, tolerance=tolerance)
    assert q.isfinite().all()
    torch.testing.assert_close(q.sum(0), torch.full((K,), 1 / K, dtype=torch.float64), atol=tolerance, rtol=0)


def test_labels_of_the_best_clusters_are_nearly_balanced_where_the_scores_are_not() -> None:
    scores = 10 * numbers(2000, 10)
    scores[:, 0] += 8
    log_a = sinkhorn(scores, 2000, CPU)
    balanced, plain = (best_clusters(scores, a).bincount(minlength=10) for a in (log_a, torch.zeros_like(log_a)))
    assert plain.max() > 500
    assert balanced.min() >= 185
    assert balanced.max() <= 215
    assert torch.equal(best_clusters(scores, log_a), plan(scores).argmax(1))


def test_blocks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    def everything() -> list[Tensor]:
        scores, points = 5 * numbers(N, K), numbers(N, 6, seed=1).float()
        log_a = sinkhorn(scores, N, CPU, tolerance=1e-10)
        white = whiten_(points, 4, N, CPU)
        labels, inertia = kmeans(white, torch.arange(N), K, N, CPU, torch.Generator().manual_seed(0))
        return [log_a, best_clusters(scores, log_a), white, labels, torch.tensor(inertia)]

    whole = everything()
    monkeypatch.setitem(clustering.BLOCK, "cpu", 20)
    for a, b in zip(whole, everything(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.fixture
def features() -> Tensor:
    """(400, 12) float32 with a mean and correlations."""
    return (numbers(400, 12) @ numbers(12, 12, seed=1) + 5 * numbers(12, seed=2)).float()


def test_whitening_is_scikit_learns(features: Tensor) -> None:
    expected = PCA(5, whiten=True).fit_transform(features.double().numpy())
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    got = whiten_(features.clone(), 5, len(features), CPU).double().numpy()
    signs = np.sign((got * expected).sum(0))  # of eigenvectors, which have none of their own
    np.testing.assert_allclose(got, expected * signs, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)


def test_whitening_is_faisss(features: Tensor) -> None:
    faiss = pytest.importorskip("faiss")
    matrix = faiss.PCAMatrix(12, 5, -0.5)  # eigen_power of the official code
    matrix.train(features.numpy())
    expected = normalize(torch.from_numpy(matrix.apply(features.numpy())))
    got = whiten_(features.clone(), 5, len(features), CPU)
    torch.testing.assert_close(got, expected * (got * expected).sum(0).sign(), atol=1e-4, rtol=0)


def test_before_the_norm_whitened_features_have_unit_covariance(features: Tensor) -> None:
    x = features.double()
    project = clustering._whitening(torch.cov(x.T, correction=0), 12)
    white = (x - x.mean(0)) @ project
    torch.testing.assert_close(torch.cov(white.T, correction=0), torch.eye(12, dtype=torch.float64), atol=1e-9, rtol=0)


def test_dead_and_repeated_features_are_whitened_to_finite_numbers(features: Tensor) -> None:
    features[:, 3] = 0
    features[:, 4] = features[:, 5]
    white = whiten_(features, 300, len(features), CPU)
    assert white.shape == (400, 12)
    assert white.isfinite().all()
    assert white[:, -2:].abs().max() < 1e-2  # nothing is there
    assert whiten_(torch.ones(8, 3), 2, 8, CPU).isfinite().all()


def test_kmeans_is_scikit_learns_from_the_same_start(features: Tensor) -> None:
    generator = torch.Generator().manual_seed(5)
    start = features[torch.randperm(400, generator=torch.Generator().manual_seed(5))[:9]]
    labels, inertia = kmeans(features, torch.arange(400), 9, 400, CPU, generator, iterations=300)
    theirs = KMeans(9, init=start.numpy(), n_init=1, max_iter=300, tol=0, algorithm="lloyd").fit(features.numpy())
    assert labels.tolist() == theirs.labels_.tolist()
    assert inertia == pytest.approx(theirs.inertia_ / 400, rel=1e-5)


def test_kmeans_is_as_good_as_faisss(features: Tensor) -> None:
    faiss = pytest.importorskip("faiss")
    theirs = faiss.Kmeans(12, 9, niter=20, nredo=5, seed=1)
    theirs.train(features.numpy())
    best = float(theirs.index.search(features.numpy(), 1)[0].mean())
    starts = (torch.Generator().manual_seed(seed) for seed in range(5))
    ours = min(kmeans(features, torch.arange(400), 9, 400, CPU, start)[1] for start in starts)
    assert ours == pytest.approx(best, rel=0.03)


def test_kmeans_never_gets_worse(features: Tensor) -> None:
    curve = [
        kmeans(features, torch.arange(400), 9, 400, CPU, torch.Generator().manual_seed(0), iterations=i)[1]
        for i in range(12)
    ]
    assert all(b <= a * (1 + 1e-6) for a, b in pairwise(curve))
    assert curve[-1] < 0.9 * curve[0]


def test_clusters_that_lose_their_images_take_over_half_of_a_large_one(features: Tensor) -> None:
    features[:300] = features[0] + 0.01 * features[:300]  # most starting points are nearly one
    copies = torch.cat([features, features[:1].expand(400, -1)])  # and half of all images are exactly one
    labels, _ = kmeans(copies, torch.arange(800), 40, 800, CPU, torch.Generator().manual_seed(0), iterations=20)
    assert (labels.bincount(minlength=40) > 0).sum() >= 38
    without = clustering._split_largest
    assert torch.equal(without(features[:4], torch.tensor([3.0, 2, 1, 4])), features[:4])  # no empty cluster: no change
    moved = without(features[:4], torch.tensor([3.0, 0, 1, 4]))
    torch.testing.assert_close((moved[1] + moved[3]) / 2, features[3])
    assert not torch.equal(moved[1], moved[3])
    assert torch.equal(moved[[0, 2]], features[[0, 2]])


def test_labels_go_to_the_positions_of_their_images() -> None:
    index = torch.tensor([3, 0, 2, 1])
    assert by_position(torch.tensor([7, 8, 9, 5]), index, 4).tolist() == [8, 5, 9, 7]


def test_the_uniform_order_takes_equally_many_from_every_cluster_that_has_images() -> None:
    labels = torch.tensor([0] * 500 + [2] * 100 + [3] * 3 + [6])[numbers(604).argsort()]
    order = uniform_order(labels, 604, torch.Generator().manual_seed(0))
    sizes = labels[order].bincount(minlength=8)
    assert len(order) == 604
    assert sizes[[0, 2, 3, 6]].tolist() == pytest.approx([150] * 4, abs=2)
    assert sizes[[1, 4, 5, 7]].tolist() == [0] * 4
    large = order[labels[order] == 0]
    assert len(large.unique()) == len(large)  # no image twice where there are enough
    assert set(order[labels[order] == 3].tolist()) == set((labels == 3).nonzero().flatten().tolist())
    assert not torch.equal(order, uniform_order(labels, 604, torch.Generator().manual_seed(1)))
    runs = int((labels[order][1:] != labels[order][:-1]).sum())
    assert runs > 300  # mixed, not cluster by cluster


def test_figures_of_an_assignment() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    entropy, empty, largest, nmi = cluster_figures(labels, 3 - labels, 4).tolist()
    assert entropy == pytest.approx(1.5 * math.log(2) / math.log(4))
    assert (empty, largest) == (1, 2)
    assert nmi == pytest.approx(1)  # other names, same clusters
    one = torch.zeros(8).long()
    assert cluster_figures(torch.arange(8) % 4, one, 4).tolist() == pytest.approx([1, 0, 1, 0])
    assert cluster_figures(one, one, 4).tolist() == [0, 3, 4, 1]
    generator = torch.Generator().manual_seed(0)
    before, now = torch.randint(5, (2, 300), generator=generator)
    now[:150] = before[:150]
    assert cluster_figures(now, before, 6)[3].item() == pytest.approx(normalized_mutual_info_score(before, now))
