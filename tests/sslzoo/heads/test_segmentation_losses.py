"""The losses are what their formulas say, ignored pixels count nowhere, and weights weigh."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sslzoo.heads.segmentation_losses import GAMMA, LOSSES, SMOOTH, build, cross_entropy, dice, focal

WEIGHT = torch.tensor([0.5, 2.0, 1.0])


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (2, 4, 5), generator=g)
    labels[0, 0] = 255
    return torch.randn(2, 3, 4, 5, generator=g), labels


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_cross_entropy_is_torchs(batch: tuple[Tensor, Tensor], weight: Tensor | None) -> None:
    logits, labels = batch
    torch.testing.assert_close(
        cross_entropy(logits, labels, weight), F.cross_entropy(logits, labels, weight, ignore_index=255)
    )


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_focal_by_its_formula(batch: tuple[Tensor, Tensor], weight: Tensor | None) -> None:
    logits, labels = batch
    total = of_all = 0.0
    for b, row, column in (labels != 255).nonzero().tolist():
        label = int(labels[b, row, column])
        p = float(logits[b, :, row, column].double().softmax(0)[label])
        w = 1.0 if weight is None else float(weight[label])
        total -= w * (1 - p) ** GAMMA * math.log(p)
        of_all += w
    assert float(focal(logits, labels, weight)) == pytest.approx(total / of_all, rel=1e-5)


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_dice_by_its_formula(batch: tuple[Tensor, Tensor], weight: Tensor | None) -> None:
    logits, labels = batch
    labels[labels == 2] = 1  # one class is not there
    known, p = labels != 255, logits.double().softmax(1)
    total = of_all = 0.0
    for k in (0, 1):
        y = labels == k
        both = float((p[:, k] * y).sum())
        sizes = float((p[:, k] * known).sum()) + float(y.sum())
        w = 1.0 if weight is None else float(weight[k])
        total += w * (1 - (2 * both + SMOOTH) / (sizes + SMOOTH))
        of_all += w
    assert float(dice(logits, labels, weight)) == pytest.approx(total / of_all, rel=1e-5)


def test_dice_is_that_of_another_library(batch: tuple[Tensor, Tensor]) -> None:
    from segmentation_models_pytorch.losses import DiceLoss

    logits, labels = batch
    theirs = DiceLoss("multiclass", smooth=SMOOTH / 2, ignore_index=255)  # theirs counts twice
    torch.testing.assert_close(dice(logits, labels), theirs(logits, labels))


@pytest.mark.parametrize("name", LOSSES)
def test_ignored_pixels_count_nowhere(name: str, batch: tuple[Tensor, Tensor]) -> None:
    logits, labels = batch
    loss = LOSSES[name]
    other = logits.clone()
    other[0, :, 0] = 100 * torch.rand(3, 5)
    for weight in (None, WEIGHT):
        torch.testing.assert_close(loss(logits, labels, weight), loss(other, labels, weight))
    logits.requires_grad_()
    loss(logits, labels, None).backward()
    assert logits.grad is not None
    assert (logits.grad[0, :, 0] == 0).all()
    assert logits.grad.abs().sum() > 0
    nothing = torch.full_like(labels, 255)
    assert loss(logits, nothing, WEIGHT).item() == 0


@pytest.mark.parametrize("name", LOSSES)
def test_right_answers_cost_nothing(name: str, batch: tuple[Tensor, Tensor]) -> None:
    _, labels = batch
    sure = 50 * F.one_hot(labels.where(labels != 255, 0), 3).movedim(-1, 1).float()
    assert LOSSES[name](sure, labels, None).item() < 1e-3
    assert LOSSES[name](-sure, labels, None).item() > 0.5


def test_sums(batch: tuple[Tensor, Tensor]) -> None:
    both = build("cross_entropy + dice")
    torch.testing.assert_close(both(*batch, WEIGHT), cross_entropy(*batch, WEIGHT) + dice(*batch, WEIGHT))
    with pytest.raises(ValueError, match=r"Unknown loss 'jaccard'\. There is: cross_entropy, dice, focal, or a sum"):
        build("dice+jaccard")
