"""Exemplar: pytorch-metric-learning's triplets, TensorFlow's rule as plain loops, closed forms, surrogate classes."""

import math

import pytest
import torch
from torch import Tensor, nn

from sslzoo_training.methods.exemplar import Exemplar, semi_hard, squared_distances

MARGIN = 0.5


def vectors(images: int, copies: int = 4, dim: int = 6, spread: float = 0.8) -> Tensor:
    """(images, copies, dim): copies around one vector for each image, so that some negatives are nearer than copies."""
    generator = torch.Generator().manual_seed(images)
    centres = torch.randn(images, 1, dim, generator=generator)
    return centres + spread * torch.randn(images, copies, dim, generator=generator)


def unit(outputs: Tensor) -> Tensor:
    return outputs / outputs.norm(dim=2, keepdim=True)


def method_of(encoder: nn.Module) -> Exemplar:
    return Exemplar(encoder, dim=6, margin=MARGIN)


def plain_loss(z: Tensor, margin: float) -> Tensor:
    """TensorFlow's triplet_semihard_loss with labels 0 0 0 0 1 1 1 1…, a pair at a time."""
    flat = z.flatten(0, 1)
    label = torch.arange(len(z)).repeat_interleave(z.shape[1])
    losses = []
    for a in range(len(flat)):
        to_negatives = [((flat[a] - n) ** 2).sum() for n in flat[label != label[a]]]
        for p in range(len(flat)):
            if p == a or label[p] != label[a]:
                continue
            to_positive = ((flat[a] - flat[p]) ** 2).sum()
            beyond = [d for d in to_negatives if d > to_positive]
            negative = min(beyond) if beyond else max(to_negatives)
            losses.append((to_positive - negative + margin).clamp(min=0))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("spread", [0.2, 0.8, 3.0])
def test_loss_and_gradient_are_those_of_plain_loops(spread: float, tiny_encoder: nn.Module) -> None:
    outputs = vectors(5, spread=spread).double().requires_grad_()
    got = method_of(tiny_encoder).triplet(outputs)["loss"]
    expected = plain_loss(unit(outputs), MARGIN)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, outputs)[0] for loss in (got, expected)))


@pytest.mark.parametrize("spread", [0.2, 0.8, 3.0])
def test_triplets_are_those_of_pytorch_metric_learning(spread: float, tiny_encoder: nn.Module) -> None:
    pytest.importorskip("pytorch_metric_learning")
    from pytorch_metric_learning.distances import LpDistance
    from pytorch_metric_learning.losses import TripletMarginLoss
    from pytorch_metric_learning.miners import TripletMarginMiner
    from pytorch_metric_learning.reducers import MeanReducer

    outputs = vectors(6, spread=spread).double()
    flat, labels = outputs.flatten(0, 1), torch.arange(6).repeat_interleave(4)
    distance = LpDistance(normalize_embeddings=True, p=2, power=2)
    mined = {}
    for kind in ("semihard", "all"):  # with this margin "semihard" is every negative beyond its positive
        miner = TripletMarginMiner(margin=1e9, type_of_triplets=kind, distance=distance)
        mined[kind] = torch.stack(miner(flat, labels), dim=1).tolist()
    squared = distance(flat).tolist()
    chosen: dict[tuple[int, int], int] = {}
    for a, p, n in mined["all"]:  # the farthest, which one that lies beyond the positive replaces, the nearest such
        if (a, p) not in chosen or squared[a][n] > squared[a][chosen[a, p]]:
            chosen[a, p] = n
    for a, p, n in sorted(mined["semihard"], key=lambda t: -squared[t[0]][t[2]]):
        chosen[a, p] = n
    assert len(chosen) == 24 * 3

    z = unit(outputs)
    positive, negative = squared_distances(z, z, torch.arange(6))
    partner = semi_hard(positive, negative)
    expected = torch.tensor([[squared[a][p], squared[a][n]] for (a, p), n in sorted(chosen.items())]).double()
    torch.testing.assert_close(torch.stack([positive.flatten(), partner.flatten()], dim=1), expected)

    triplets = tuple(torch.tensor([(a, p, n) for (a, p), n in chosen.items()]).T)
    theirs = TripletMarginLoss(margin=MARGIN, distance=distance, reducer=MeanReducer())(flat, labels, triplets)
    torch.testing.assert_close(method_of(tiny_encoder).triplet(outputs)["loss"], theirs)


def test_constant_embeddings_cost_the_margin_and_separate_ones_nothing(tiny_encoder: nn.Module) -> None:
    method = method_of(tiny_encoder)
    constant = method.triplet(torch.ones(5, 4, 6))
    assert constant["loss"].item() == pytest.approx(MARGIN)
    assert constant["accuracy"] == 0
    apart = method.triplet(torch.eye(6)[:, None].repeat(1, 4, 1))  # squared distances 0 and 2
    assert apart["loss"] == 0
    assert apart["accuracy"] == 1


def test_loss_does_not_depend_on_the_order_of_images_and_copies_or_on_lengths(tiny_encoder: nn.Module) -> None:
    method, outputs = method_of(tiny_encoder), vectors(5).double()
    loss = method.triplet(outputs)["loss"]
    assert 0 < loss < 4 + MARGIN
    torch.testing.assert_close(method.triplet(outputs[[3, 1, 4, 0, 2]])["loss"], loss)
    torch.testing.assert_close(method.triplet(outputs[:, [2, 0, 3, 1]])["loss"], loss)
    longer = outputs * (1 + torch.arange(20).view(5, 4, 1))  # each vector is normalised by itself
    torch.testing.assert_close(method.triplet(longer)["loss"], loss)


def test_accuracy_is_that_of_the_nearest_neighbour(tiny_encoder: nn.Module) -> None:
    outputs = vectors(6)
    flat = unit(outputs).flatten(0, 1)
    distance = torch.cdist(flat, flat).fill_diagonal_(math.inf)
    expected = (distance.argmin(1) // 4 == torch.arange(24) // 4).float().mean()
    assert 0 < expected < 1
    assert method_of(tiny_encoder).triplet(outputs)["accuracy"] == expected


def test_a_step_has_eight_copies_of_each_image(tiny_encoder: nn.Module) -> None:
    assert len(Exemplar.VIEWS) == 8
    method = method_of(tiny_encoder).double().train()
    views = [torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(v)).double() for v in range(8)]
    out = method(views, torch.arange(3))
    images_first = torch.stack(views, dim=1).flatten(0, 1)
    outputs = method.head(tiny_encoder(images_first)).float().view(3, 8, 6)
    torch.testing.assert_close(out["loss"], plain_loss(unit(outputs), MARGIN))
    torch.testing.assert_close(out["embedding"], unit(outputs).flatten(0, 1).detach())


def test_one_image_has_no_negatives(tiny_encoder: nn.Module) -> None:
    with pytest.raises(ValueError, match="at least 2 in a batch, got 1"):
        method_of(tiny_encoder).triplet(vectors(1))


def test_softmax_has_a_class_for_each_image(tiny_encoder: nn.Module) -> None:
    method = Exemplar(tiny_encoder, loss="softmax")
    method.begin(40)
    views = [torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(v)) for v in range(8)]
    index = torch.tensor([7, 39, 0])
    out = method(views, index)
    logits = method.head(tiny_encoder(torch.cat(views)))
    assert logits.shape == (24, 40)
    expected = torch.stack([-row.log_softmax(0)[index[i % 3]] for i, row in enumerate(logits)]).mean()
    torch.testing.assert_close(out["loss"], expected)
    assert out["accuracy"] == (logits.argmax(1) == index.repeat(8)).float().mean()
    with pytest.raises(ValueError, match="needs one of triplet, softmax"):
        Exemplar(tiny_encoder, loss="cosine")


def test_a_negative_lies_strictly_beyond_its_positive_or_is_the_farthest() -> None:
    positive = torch.tensor([[[0.0, 1.0, 1.5, 3.0, 4.0]]])
    negative = torch.tensor([[[0.5, 1.0, 1.0, 3.0]]])
    assert semi_hard(positive, negative).tolist() == [[[0.5, 3.0, 3.0, 3.0, 3.0]]]


def test_bf16_does_not_round_distances(tiny_encoder: nn.Module) -> None:
    method, outputs = method_of(tiny_encoder), vectors(5)
    expected = method.triplet(outputs)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(method.triplet(outputs)["loss"], expected)
