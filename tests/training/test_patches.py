"""Patches against plain loops; that they never overlap; their statistics."""

import pytest
import torch
from torch import Tensor

from sslzoo_training.patches import cut_patches, standardize


def rand(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("side", "size", "play"), [(30, 8, 2), (32, 6, 1), (64, 16, 5), (9, 3, 0)])
def test_patches_are_those_of_plain_loops(side: int, size: int, play: int) -> None:
    images, draws = rand(4, 3, side, side), rand(4, 9, 2)
    patches = cut_patches(images, draws, size, play)
    cell = side // 3
    for b in range(4):
        for row in range(3):
            for column in range(3):
                down, right = (int(u * (play + 1)) for u in draws[b, 3 * row + column].tolist())
                margin = (cell - size - play) // 2
                top, left = row * cell + margin + down, column * cell + margin + right
                expected = images[b, :, top : top + size, left : left + size]
                assert torch.equal(patches[b, 3 * row + column], expected)


@pytest.mark.parametrize(("size", "play"), [(32, 10), (32, 4), (28, 0), (42, 0)])
def test_patches_stay_in_their_cells_and_apart_whatever_is_drawn(size: int, play: int) -> None:
    side, cell = 128, 42
    place = torch.arange(side * side).view(1, 1, side, side).float().expand(2, 1, side, side)
    extremes = torch.stack([torch.zeros(9, 2), torch.full((9, 2), 1 - 2**-24)])
    corners = cut_patches(place, extremes, size, play)[:, :, 0, 0, 0].long()  # pixel number of the top left corner
    top, left = corners // side, corners % side
    rows = torch.arange(3).repeat_interleave(3) * cell
    for edge, first in ((top, rows), (left, rows.view(3, 3).T.flatten())):
        assert (edge >= first).all()
        assert (edge + size <= first + cell).all()
        assert (edge[1] - edge[0] == play).all()  # all of the play is used
    gap = int(top[0, 3] - (top[1, 0] + size))  # the upper one as low as it goes, the lower one as high
    assert gap == cell - size - play


def test_patches_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="17 pixels that move by 5 do not fit into cells of 21"):
        cut_patches(rand(1, 3, 64, 64), rand(1, 9, 2), 17, 5)


def test_each_channel_of_each_patch_gets_mean_0_and_variance_1() -> None:
    patches = rand(2, 9, 3, 8, 8) * torch.tensor([1.0, 50.0, 0.7]).view(3, 1, 1) + 3
    done = standardize(patches)
    torch.testing.assert_close(done.mean(dim=(3, 4)), torch.zeros(2, 9, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(done.var(dim=(3, 4), correction=0), torch.ones(2, 9, 3), atol=1e-4, rtol=0)
    torch.testing.assert_close(standardize(patches * 7 - 2), done, atol=1e-4, rtol=1e-4)
    flat = standardize(torch.full((1, 9, 3, 8, 8), 5.0))
    assert flat.abs().max() == 0
    faint = 1e-3 * torch.randn(1, 1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert standardize(faint).std() < 0.01  # an empty sky's noise stays small
