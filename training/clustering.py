"""Clusters of the whole data set, found where its features are: every process works through its own rows in blocks.

What is exchanged is as large as the clusters, not as the data set, so neither a memory nor a process needs all rows,
and several processes find what one would. Rows may lie on another device than `device` or in a memory-mapped file.
"""

import math
from collections import deque
from collections.abc import Iterator

import numpy as np
import torch
import torch.distributed
from scipy.sparse import coo_array
from sklearn.metrics import mutual_info_score
from torch import Tensor
from torch.nn.functional import normalize

BLOCK = {"cpu": 2**18, "cuda": 2**23}  # numbers of a block: what a core's cache holds, and 64 MB in float64
# entropy / log K (1: clusters of one size), clusters without images, images in the largest / images in the mean one,
# normalised mutual information with the assignment before (1: nothing changed but names)
FIGURES = ("entropy", "empty", "largest", "nmi")


def sinkhorn(
    scores: Tensor, images: int, device: torch.device,
    *, start: Tensor | None = None, tolerance: float = 5e-3, max_iterations: int = 1000, memory: int = 10,
) -> Tensor:  # fmt: skip
    """Cluster weights of the balanced assignment nearest to softmax(scores), by Sinkhorn-Knopp (Cuturi 2013).

    The plan is Q_ij = a_i exp(s_ji) b_j, with a (K,), b (N,) such that every cluster i has the mass 1 / K and every
    image j the mass 1 / N. In the logarithm, where nothing underflows, one round is a softmax: log a_i + s_ji
    normalised over i is N Q with exact images, and log a_i then falls by the logarithm of what cluster i has too much.
    Constants added to an image's scores make no difference. The plan is one and the same however it is reached: on the
    scores of SeLa on CIFAR-10 fourteen accelerated rounds come as near to it as two hundred plain ones.

    Args:
        scores: (n, K) this process's rows; for the paper's P^lambda (Asano et al. 2020, Eq. 7), lambda log P.
        images: N, of all processes.
        device: Where to compute, in the type of the scores; masses are summed in float64.
        start: (K,) float64 to begin from: log a of similar scores saves rounds. None: 0.
        tolerance: Stop when the masses of the clusters are wrong by this much in total, of 1. With 5e-3, 99.6 % of the
            labels of SeLa on CIFAR-10 are those of the exact plan; 1e-3 takes twice the time for 99.9 %.
        max_iterations: Stop at the latest.
        memory: Rounds that the acceleration looks back on; 0 for plain Sinkhorn-Knopp.

    Returns:
        (K,) float64: log a. Q of an image is softmax(s + log a) / N.
    """
    clusters = scores.shape[1]
    log_a = torch.zeros(clusters, dtype=torch.float64, device=device) if start is None else start - start.mean()
    steps = Anderson(memory)
    for _ in range(max_iterations):
        mass = torch.zeros_like(log_a)
        for block in _blocks(scores, clusters, device):
            mass += (block + log_a.to(block)).softmax(1).double().sum(0)
        mass = all_sum(mass) / images
        error = float((mass - 1 / clusters).abs().sum())
        if error <= tolerance:
            break
        # a cluster out of everyone's reach has a mass that underflows: it comes nearer by e^700 a round
        change = -(clusters * mass.clamp_min(torch.finfo(mass.dtype).tiny)).log()
        log_a = from_first(steps.next(log_a, change, error))
    return log_a


class Anderson:
    """Anderson acceleration: the next point is where, by the last few, a round would change least.

    Walker & Ni 2011, https://doi.org/10.1137/10078356X (Sec. 2). A leap that does not bring it nearer is taken back,
    and a plain round made instead.

    Args:
        memory: How many rounds to look back on.
    """

    def __init__(self, memory: int) -> None:
        self.error, self.leapt = math.inf, False
        self.points: deque[Tensor] = deque(maxlen=memory + 1)
        self.changes: deque[Tensor] = deque(maxlen=memory + 1)

    def next(self, point: Tensor, change: Tensor, error: float) -> Tensor:
        """The point (K,) after this one, which is wrong by `error` and which a plain round would change by `change`."""
        if self.leapt and error > self.error:
            point, change = self.points[-1], self.changes[-1]
            self.points.clear()
            self.changes.clear()
            self.leapt = False
            return point + change
        self.error = error
        self.points.append(point)
        self.changes.append(change)
        self.leapt = len(self.points) > 1
        if not self.leapt:
            return point + change
        moves, bends = (torch.stack(tuple(x), 1).diff() for x in (self.points, self.changes))  # (K, rounds - 1)
        weights = torch.linalg.lstsq(bends.cpu(), change.cpu()[:, None], rcond=1e-10, driver="gelsd").solution
        return point + change - ((moves + bends) @ weights.to(point.device)).squeeze(1)


def best_clusters(scores: Tensor, log_a: Tensor) -> Tensor:
    """(n,) argmax over clusters of scores (n, K) + log_a (K,), on the device of `log_a`."""
    return torch.cat([(block + log_a.to(block)).argmax(1) for block in _blocks(scores, len(log_a), log_a.device)])


def whiten_(features: Tensor, dim: int, images: int, device: torch.device) -> Tensor:
    """PCA-whitened and then l2-normalised features, written over the first columns of `features`.

    Args:
        features: (n, D) this process's rows; overwritten.
        dim: Largest number of principal components to keep.
        images: N, of all processes.
        device: Where to compute.

    Returns:
        (n, min(dim, D)): of unit length.
    """
    columns = features.shape[1]
    mean = torch.zeros(columns, dtype=torch.float64, device=device)
    for block in _blocks(features, columns, device):
        mean += block.double().sum(0)
    mean = all_sum(mean) / images
    covariance = torch.zeros(columns, columns, dtype=torch.float64, device=device)
    for block in _blocks(features, columns, device):
        centred = block.double() - mean
        covariance += centred.T @ centred
    project = from_first(_whitening(all_sum(covariance) / images, dim))  # (D, d)
    white = features[:, : project.shape[1]]
    size = _block_rows(columns, device)
    for source, target in zip(torch.split(features, size), torch.split(white, size), strict=True):
        target.copy_(normalize((source.to(device).double() - mean) @ project))
    return white


def _whitening(covariance: Tensor, dim: int) -> Tensor:
    """(D, d): the first principal directions, each over the standard deviation along it."""
    variance, directions = torch.linalg.eigh(covariance)  # ascending
    variance, directions = variance.flip(0)[:dim], directions.flip(1)[:, :dim]
    # a dead direction has no spread to be made 1: the floor leaves it near 0 instead of blowing up its rounding errors
    floor = torch.finfo(torch.float32).eps * variance[0].clamp_min(torch.finfo(variance.dtype).tiny)
    return directions * variance.clamp_min(floor).rsqrt()


def kmeans(
    points: Tensor, index: Tensor, clusters: int, images: int, device: torch.device, generator: torch.Generator,
    *, iterations: int = 20,
) -> tuple[Tensor, float]:  # fmt: skip
    """Lloyd's algorithm from random images, as faiss does it: an empty cluster takes over half of a large one.

    Args:
        points: (n, d) this process's rows.
        index: (n,) their positions in the data set.
        clusters: K, at most N.
        images: N, of all processes.
        device: Where to compute.
        generator: On the CPU, in the same state in all processes.
        iterations: Updates of the centroids.

    Returns:
        (n,) the nearest centroid of each row; and the mean squared distance to it, over all processes.
    """
    centroids = _rows_at(torch.randperm(images, generator=generator)[:clusters], points, index, images, device)
    for _ in range(iterations):
        _, _, sums, sizes = _assign(points, centroids)
        means = (sums / sizes[:, None].clamp_min(1)).to(centroids.dtype)
        centroids = _split_largest(torch.where(sizes[:, None] > 0, means, centroids), sizes)
    labels, distance, _, _ = _assign(points, centroids)
    return labels, float(distance) / images


def _rows_at(chosen: Tensor, points: Tensor, index: Tensor, images: int, device: torch.device) -> Tensor:
    """(K, d) the rows of the chosen positions, which lie in different processes."""
    slot = torch.full((images,), -1).index_copy_(0, chosen, torch.arange(len(chosen)))[index]
    rows = torch.zeros(len(chosen), points.shape[1], device=device)
    here = (slot >= 0).nonzero().squeeze(1)
    rows[slot[here].to(device)] = points[here.to(points.device)].to(device)
    return all_sum(rows)


def _assign(points: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Nearest centroid of each row (n,); of all processes: sum of squared distances, sums (K, d) and sizes (K,)."""
    labels = []
    half_norms = centroids.square().sum(1) / 2
    distance = torch.zeros((), dtype=torch.float64, device=centroids.device)
    sums, sizes = torch.zeros_like(centroids, dtype=torch.float64), torch.zeros_like(half_norms, dtype=torch.float64)
    for block in _blocks(points, max(centroids.shape), centroids.device):
        nearness, nearest = (block @ centroids.T - half_norms).max(1)  # (|x|^2 - |x - c|^2) / 2
        distance += (block.square().sum(1) - 2 * nearness).double().sum()
        sums.index_add_(0, nearest, block.double())
        sizes += nearest.bincount(minlength=len(centroids))
        labels.append(nearest)
    nearest = torch.cat(labels) if labels else torch.empty(0, dtype=torch.int64, device=centroids.device)
    return nearest, all_sum(distance), all_sum(sums), all_sum(sizes)


def _split_largest(centroids: Tensor, sizes: Tensor) -> Tensor:
    """Move each centroid without points next to one of the largest clusters, so that they share its points."""
    empty = (sizes == 0).nonzero().squeeze(1)
    empty = empty[: int((sizes > 1).sum())]
    large = sizes.topk(len(empty)).indices
    nudge = torch.ones_like(centroids[0])
    nudge[1::2] = -1
    moved = centroids.clone()
    moved[empty], moved[large] = centroids[large] * (1 + nudge / 1024), centroids[large] * (1 - nudge / 1024)
    return moved


def by_position(labels: Tensor, index: Tensor, images: int) -> Tensor:
    """(N,) int64, in every process: the labels (n,) of all processes at their positions (n,) in the data set."""
    everywhere = torch.zeros(images, dtype=torch.int64, device=labels.device)
    everywhere[index.to(labels.device)] = labels
    return all_sum(everywhere)


def uniform_order(labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(count,) positions in random order, equally many (but for a few) from every cluster that has images.

    An image comes twice only where its cluster has too few.

    Args:
        labels: (N,) cluster of each image, on the CPU.
        count: How many.
        generator: On the CPU.
    """
    mixed = torch.randperm(len(labels), generator=generator)
    members = mixed[labels[mixed].argsort(stable=True)]  # cluster by cluster, each in random order
    sizes = labels.bincount()
    sizes = sizes[sizes > 0]
    each = count // len(sizes) + 1
    again = (torch.rand(len(sizes), each, generator=generator, dtype=torch.float64) * sizes[:, None]).long()
    place = torch.where(sizes[:, None] >= each, torch.arange(each), again)  # (clusters, each)
    drawn = members[(place + (sizes.cumsum(0) - sizes)[:, None]).flatten()]
    return drawn[torch.randperm(len(drawn), generator=generator)[:count]]


def cluster_figures(labels: Tensor, previous: Tensor, clusters: int) -> Tensor:
    """(4,) numbers on an assignment, named in `FIGURES`.

    Args:
        labels: (N,).
        previous: (N,) of the assignment before.
        clusters: K.
    """
    before, now = previous.cpu().long(), labels.cpu().long()
    sizes = now.bincount(minlength=clusters).double()
    entropies = [float(torch.special.entr(n / n.sum()).sum()) for n in (before.bincount().double(), sizes)]
    both = coo_array(
        (np.ones(len(now)), (before.numpy(), now.numpy()))
    ).tocsr()  # alone, scikit-learn takes seven times as long
    mutual = mutual_info_score(None, None, contingency=both)
    nmi = mutual / np.mean(entropies) if any(entropies) else 1.0
    figures = [entropies[1] / math.log(clusters), int((sizes == 0).sum()), float(sizes.max() / sizes.mean()), nmi]
    return torch.tensor(figures, dtype=torch.float32)


def _block_rows(columns: int, device: torch.device) -> int:
    """Rows of a block with that many columns."""
    return max(1, BLOCK[device.type] // columns)


def _blocks(rows: Tensor, columns: int, device: torch.device) -> Iterator[Tensor]:
    """A block of rows at a time, on the device."""
    for block in torch.split(rows, _block_rows(columns, device)):
        yield block.to(device, non_blocking=True)


def all_sum(x: Tensor) -> Tensor:
    """The sum of what all processes have; written over `x` where there are several."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(x)
    return x


def from_first(x: Tensor) -> Tensor:
    """What the first process has, in all of them: eigenvectors may come out with another sign elsewhere."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        x = x.contiguous()
        torch.distributed.broadcast(x, 0)
    return x
