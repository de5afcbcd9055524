"""Jigsaw puzzles: the set of permutations, and the method's step as plain loops."""

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sslzoo_training.methods.jigsaw import Jigsaw, permutation_set, shuffle


def rand(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("count", "least"), [(10, 8), (30, 7), (100, 6), (1000, 5)])
def test_permutations_are_far_from_each_other(count: int, least: int) -> None:
    chosen = permutation_set(count)
    assert chosen.shape == (count, 9)
    assert torch.equal(chosen.sort(dim=1).values, torch.arange(9).expand(count, 9))
    distances = (chosen[:, None] != chosen).sum(2)
    assert distances[~torch.eye(count, dtype=torch.bool)].min() >= least


def test_each_permutation_is_as_far_as_can_be_from_those_before() -> None:
    chosen = permutation_set(12).numpy()
    everything = np.array(list(permutations(range(9))), dtype=np.uint8)
    nearest = np.full(len(everything), 9)
    for number in range(1, 12):
        nearest = np.minimum(nearest, (everything != chosen[number - 1]).sum(1))
        assert (chosen[:number] != chosen[number]).sum(1).min() == nearest.max()


def test_the_set_is_the_same_each_time_and_another_for_another_seed() -> None:
    assert torch.equal(permutation_set(20), permutation_set(20))
    assert torch.equal(permutation_set(20), permutation_set(30)[:20])
    assert not torch.equal(permutation_set(20, seed=1), permutation_set(20))


@pytest.mark.parametrize("count", [0, 1, 362_881])
def test_sizes_that_no_set_can_have(count: int) -> None:
    with pytest.raises(ValueError, match=r"needs to be in 2\.\.362880"):
        permutation_set(count)


def test_shuffling_puts_tile_order_j_at_place_j_and_can_be_undone() -> None:
    tiles, order = rand(4, 9, 5), torch.stack([torch.randperm(9) for _ in range(8)]).view(4, 2, 9)
    shuffled = shuffle(tiles, order)
    for b in range(4):
        for p in range(2):
            for j in range(9):
                assert torch.equal(shuffled[b, p, j], tiles[b, order[b, p, j]])
            assert torch.equal(shuffled[b, p][order[b, p].argsort()], tiles[b])


def plain_loss(method: Jigsaw, images: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """The step, an image, a tile and a puzzle at a time. Returns logits and labels."""
    cell = images.shape[2] // 3
    size = round(method.tile * cell)
    tiles, puzzles, labels = [], [], []
    for image, draw in zip(images, draws, strict=True):
        for number in range(9):
            down, right = (int(draw[2 * number + k] * (cell - size + 1)) for k in range(2))
            top, left = number // 3 * cell + down, number % 3 * cell + right
            tile = image[:, top : top + size, left : left + size]
            tiles.append(torch.stack([(c - c.mean()) / c.std(correction=0) for c in tile]))
    embedded = method.embed(method.encoder(torch.stack(tiles)))
    for b, draw in enumerate(draws):
        for u in draw[18:]:
            label = int(u * len(method.permutations))
            order = method.permutations[label].tolist()
            puzzles.append(torch.cat([embedded[9 * b + tile] for tile in order]))
            labels.append(label)
    return method.head(torch.stack(puzzles)), torch.tensor(labels)


def test_a_step_is_that_of_plain_loops(tiny_encoder: nn.Module) -> None:
    method = Jigsaw(tiny_encoder, permutations=30, puzzles=3, dim=6, hidden_dim=16).double().train()
    images = rand(4, 3, 40, 40).double()
    draws = method.draw(4, torch.Generator().manual_seed(3)).double()
    assert draws.shape == (4, 21)
    out = method([images, draws], torch.arange(4))
    logits, labels = plain_loss(method, images, draws)
    expected = nn.functional.cross_entropy(logits.float(), labels)
    torch.testing.assert_close(out["loss"], expected)
    assert out["accuracy"] == (logits.argmax(1) == labels).float().mean()
    got = torch.autograd.grad(out["loss"], list(method.parameters()))
    for a, b in zip(got, torch.autograd.grad(expected, list(method.parameters())), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)


def test_an_untrained_head_is_at_chance(tiny_encoder: nn.Module) -> None:
    method = Jigsaw(tiny_encoder, permutations=100, puzzles=50, dim=8, hidden_dim=64).train()
    draws = method.draw(32, torch.Generator().manual_seed(0))
    out = method([rand(32, 3, 48, 48), draws], torch.arange(32))
    assert out["loss"].item() == pytest.approx(math.log(100), rel=0.1)
    assert out["accuracy"] < 0.04
    labels = (draws[:, 18:] * 100).long()
    assert set(labels.flatten().tolist()) == set(range(100))


def test_tiles_of_all_places_share_one_batch(tiny_encoder: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch statistics of one place, or of one image, would tell the place."""
    batches: list[int] = []
    method = Jigsaw(tiny_encoder, permutations=10, dim=8, hidden_dim=16)
    monkeypatch.setattr(method.encoder, "forward", lambda x: batches.append(len(x)) or torch.randn(len(x), 8))
    method([rand(5, 3, 48, 48), method.draw(5, torch.Generator())], torch.arange(5))
    assert batches == [45]


def test_the_permutations_are_in_the_checkpoint(tiny_encoder: nn.Module) -> None:
    method = Jigsaw(tiny_encoder, permutations=10, dim=8, hidden_dim=16)
    assert torch.equal(method.state_dict()["permutations"], permutation_set(10))
