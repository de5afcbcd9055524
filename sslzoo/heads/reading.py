"""Reading images ahead of a network that takes them in batches."""

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import TypeVar

from sslzoo.data import ImageSet, UnreadableImageError
from sslzoo.encoding import ahead, cut, reading_threads

View = TypeVar("View")


def read_batches(
    images: ImageSet, prepare: Callable[[ImageSet, int], View], batch_size: int, num_workers: int | None
) -> Iterator[tuple[list[int], list[View], list[tuple[str, str]]]]:
    """Read and prepare images in their order, a batch at a time.

    Args:
        images: The set.
        prepare: Reads image i of it.
        batch_size: Images a batch.
        num_workers: Threads beside this one; None chooses.

    Yields:
        Positions and views of the images that can be read, and name and reason of each other one.
    """

    def read(i: int) -> View | UnreadableImageError:
        try:
            return prepare(images, i)
        except UnreadableImageError as error:
            return error

    runs = cut(range(len(images)), batch_size)
    threads = reading_threads() if num_workers is None else num_workers
    with closing(ahead(runs, lambda run: ((i,) for i in run), read, threads)) as batches:
        for run, views in batches:
            yield _sorted(images, run, views)


def _sorted(
    images: ImageSet, run: list[int], views: list[View | UnreadableImageError]
) -> tuple[list[int], list[View], list[tuple[str, str]]]:
    """Tell the images that could be read from the others."""
    index, good, skipped = [], [], []
    for i, view in zip(run, views, strict=True):
        if isinstance(view, UnreadableImageError):
            skipped.append((images.names[i], view.reason))
        else:
            index.append(i)
            good.append(view)
    return index, good, skipped
