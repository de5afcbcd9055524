"""Random parts of labelled sets, drawn class by class."""

from typing import Any

import numpy as np

Labels = np.ndarray[Any, np.dtype[np.int64]]


def stratified_split(y: Any, test_fraction: float, seed: int) -> tuple[Labels, Labels]:
    """Split at random, the same fraction of every class, at least one image of it on either side.

    Args:
        y: (N,) labels, numbers or names.
        test_fraction: Between 0 and 1.
        seed: The same seed gives the same split.

    Returns:
        Sorted positions of the training and of the test part.

    Raises:
        ValueError: A class with a single image, or a fraction outside (0, 1).
    """
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction must lie between 0 and 1, got {test_fraction}.")
    rng = np.random.default_rng(seed)
    train, test = [], []
    for label, members in _members(y):
        if len(members) < 2:
            raise ValueError(
                f"Class {label!r} has a single image; a split needs two. Add images of it or leave it out."
            )
        members = rng.permutation(members)
        n_test = min(max(round(test_fraction * len(members)), 1), len(members) - 1)
        test.append(members[:n_test])
        train.append(members[n_test:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(test))


def random_split(n: int, test_fraction: float, seed: int) -> tuple[Labels, Labels]:
    """Split n images at random, at least one on either side; returns sorted positions as `stratified_split` does.

    Raises:
        ValueError: A single image, or a fraction outside (0, 1).
    """
    if n < 2:
        raise ValueError(f"A split needs two images at the least, got {n}.")
    return stratified_split(np.zeros(n, dtype=np.int64), test_fraction, seed)


def few_labels(y: Any, per_class: int, seed: int) -> Labels:
    """Choose so many images of every class at random; returns their sorted positions.

    Raises:
        ValueError: A class has fewer.
    """
    rng = np.random.default_rng(seed)
    chosen = []
    for label, members in _members(y):
        if len(members) < per_class:
            raise ValueError(f"Class {label!r} has {len(members)} images, {per_class} of every class were asked for.")
        chosen.append(rng.choice(members, per_class, replace=False))
    return np.sort(np.concatenate(chosen))


def _members(y: Any) -> list[tuple[Any, Labels]]:
    """Every label, in order, with the positions that have it."""
    y = np.asarray(y)
    return [(label, np.flatnonzero(y == label)) for label in np.unique(y).tolist()]
