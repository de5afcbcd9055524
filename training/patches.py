"""Patches on a 3 x 3 grid of each image: what the jigsaw puzzle and context prediction look at."""

import torch
from torch import Tensor

GRID = 3
PATCHES = GRID * GRID


def cut_patches(images: Tensor, draws: Tensor, size: int, play: int) -> Tensor:
    """Cut a square out of each cell of a 3 x 3 grid, each with an offset of its own.

    Args:
        images: (B, C, S, S); the cells' side is S // 3.
        draws: (B, 9, 2), uniform in [0, 1): how far down and to the right each patch lies in its play.
        size: Side of the patches, pixels.
        play: Pixels by which a patch can move in the middle of its cell.

    Returns:
        (B, 9, C, size, size), cells row by row. Between two neighbours are at least cell - size - play pixels.

    Raises:
        ValueError: Patches with their play do not fit into the cells.
    """
    cell = images.shape[-1] // GRID
    if size < 1 or size + play > cell:
        raise ValueError(
            f"patches of {size} pixels that move by {play} do not fit into cells of {cell}, a third of "
            f"{images.shape[-1]} pixels. Use larger images, or smaller patches."
        )
    device = images.device
    first = torch.arange(GRID, device=device) * cell + (cell - size - play) // 2
    top, left = (torch.cartesian_prod(first, first) + (draws * (play + 1)).long()).unbind(2)  # (B, 9) each
    windows = images.unfold(2, size, 1).unfold(3, size, 1)  # a view of every square: (B, C, top, left, size, size)
    return windows[torch.arange(len(images), device=device)[:, None], :, top, left]


def standardize(patches: Tensor) -> Tensor:
    """Give each channel of each patch mean 0 and variance 1: its colour and contrast shall not tell where it was.

    Args:
        patches: (..., size, size). What is almost constant is not blown up: no std counts for less than 1 / size.
    """
    variance, mean = torch.var_mean(patches, dim=(-2, -1), correction=0, keepdim=True)
    return (patches - mean) / variance.sqrt().clamp(min=1 / patches.shape[-1])
