"""Context prediction: the authors' labels, what happens to colours, and the method's step as plain loops."""

import math

import pytest
import torch
from torch import Tensor, nn

from sslzoo_training.methods.context import (
    FIRST,
    LABELS,
    SECOND,
    Context,
    keep_one_channel,
    project_colors,
)


def rand(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def position_to_label(x: int, y: int) -> int:
    """The authors' pos2lbl: a number for where the second patch lies, x to the right and y down."""
    if y == -1:
        return x + 1
    if y == 0:
        return (x + 7) // 2
    return x + 6


def test_labels_are_those_of_the_authors() -> None:
    assert len(FIRST) == len(SECOND) == len(LABELS) == 16
    for first, second, label in zip(FIRST, SECOND, LABELS, strict=True):
        (y1, x1), (y2, x2) = divmod(first, 3), divmod(second, 3)
        assert label == position_to_label(x2 - x1, y2 - y1)


def test_swapping_a_pair_mirrors_its_label_and_all_labels_are_equally_frequent() -> None:
    label = {(a, b): k for a, b, k in zip(FIRST, SECOND, LABELS, strict=True)}
    assert len(label) == 16
    assert all(label[b, a] == 7 - k for (a, b), k in label.items())
    assert sorted(LABELS) == sorted([*range(8), *range(8)])


def test_dropping_leaves_one_channel_and_nothing_of_the_others() -> None:
    patches, draws = rand(50, 9, 3, 4, 4) + 0.1, rand(50, 9)
    kept = keep_one_channel(patches, draws)
    for b in range(50):
        for p in range(9):
            channel = int(draws[b, p] * 3)
            assert torch.equal(kept[b, p, channel], patches[b, p, channel])
            assert all(kept[b, p, other].abs().max() == 0 for other in range(3) if other != channel)
    counts = (kept.abs().sum(dim=(3, 4)) > 0).sum(dim=(0, 1))
    assert counts.sum() == 450
    assert counts.min() > 100


def test_projection_takes_green_magenta_out_and_leaves_grey() -> None:
    a = torch.tensor([-1.0, 2.0, -1.0], dtype=torch.float64)
    matrix = torch.eye(3, dtype=torch.float64) - torch.outer(a, a) / (a @ a)  # the paper's B
    patches = rand(2, 9, 3, 5, 5).double()
    projected = project_colors(patches)
    torch.testing.assert_close(projected, torch.einsum("cd, bpdhw -> bpchw", matrix, patches))
    torch.testing.assert_close(project_colors(projected), projected)
    along = a.view(3, 1, 1) * rand(1, 1, 1, 5, 5)
    torch.testing.assert_close(project_colors(along), torch.zeros(1, 1, 3, 5, 5, dtype=torch.float64))
    grey = rand(1, 1, 1, 5, 5).double().expand(1, 1, 3, 5, 5)
    torch.testing.assert_close(project_colors(grey), grey)


@pytest.mark.parametrize("color", ["drop", "project", "keep"])
def test_a_step_is_that_of_plain_loops(color: str, tiny_encoder: nn.Module) -> None:
    method = Context(tiny_encoder, patch=0.7, jitter=0.1, color=color, dim=6, hidden_dim=16).double().train()
    images = rand(4, 3, 60, 60).double()
    draws = method.draw(4, torch.Generator().manual_seed(3)).double()
    assert draws.shape == (4, 27)
    out = method([images, draws], torch.arange(4))
    patches = []
    for image, draw in zip(images, draws, strict=True):
        for number in range(9):  # cells of 20 pixels, patches of 14, 1 pixel free around the 4 that they move in
            top, left = (20 * k + 1 + int(5 * draw[2 * number + n]) for n, k in enumerate(divmod(number, 3)))
            patch = image[:, top : top + 14, left : left + 14]
            if color == "project":
                patch = project_colors(patch)
            patch = torch.stack([(c - c.mean()) / c.std(correction=0) for c in patch])
            if color == "drop":
                patch = patch * (torch.arange(3) == int(3 * draw[18 + number])).view(3, 1, 1)
            patches.append(patch)
    embedded = method.embed(method.encoder(torch.stack(patches))).view(4, 9, 6)
    pairs = [torch.cat([e[a], e[b]]) for e in embedded for a, b in zip(FIRST, SECOND, strict=True)]
    logits, labels = method.head(torch.stack(pairs)).float(), torch.tensor(LABELS * 4)
    expected = nn.functional.cross_entropy(logits, labels)
    torch.testing.assert_close(out["loss"], expected)
    assert out["accuracy"] == (logits.argmax(1) == labels).float().mean()
    got = torch.autograd.grad(out["loss"], list(method.parameters()))
    for a, b in zip(got, torch.autograd.grad(expected, list(method.parameters())), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)


def test_an_untrained_head_is_at_chance(tiny_encoder: nn.Module) -> None:
    method = Context(tiny_encoder, dim=8, hidden_dim=64).train()
    out = method([rand(64, 3, 48, 48), method.draw(64, torch.Generator().manual_seed(0))], torch.arange(64))
    assert out["loss"].item() == pytest.approx(math.log(8), rel=0.1)
    assert out["accuracy"].item() == pytest.approx(1 / 8, abs=0.04)


@pytest.mark.parametrize("side", [32, 64, 96, 128, 255, 432])
def test_a_gap_is_left_at_every_size(side: int, tiny_encoder: nn.Module) -> None:
    method = Context(tiny_encoder, patch=0.77, jitter=0.1, color="keep", dim=8, hidden_dim=16)
    place = torch.arange(side * side).view(1, 1, side, side).float().expand(2, 3, side, side)
    where = torch.stack([torch.zeros(9, 2), torch.full((9, 2), 1 - 2**-24)])
    patches = method.patches(place, where, torch.zeros(2, 9))
    first, last = patches[0, :, 0, 0, 0].long(), patches[1, :, 0, -1, -1].long()
    assert (first[3] // side) - (last[0] // side) > 1
    assert (first[1] % side) - (last[0] % side) > 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"patch": 0.9, "jitter": 0.05}, "leaves no gap"), ({"color": "grey"}, "needs one of drop, project, keep")],
)
def test_settings_that_give_the_answer_away(settings: dict[str, object], message: str, tiny_encoder: nn.Module) -> None:
    with pytest.raises(ValueError, match=message):
        Context(tiny_encoder, **settings)  # type: ignore[arg-type]
