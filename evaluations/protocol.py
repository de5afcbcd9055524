"""What the evaluations of frozen features share: subject, data, features, and one test at the end.

A protocol is a function `fit(train, seed) -> (predict, settings)`. It sees no test set, so it can choose nothing on it.
"""

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from sslzoo.data import ImageSet, UnreadableImageError, open_images
from sslzoo.transforms import normalise, to_tensor

from . import results
from .subjects import EvaluationError, Subject, open_subject

BATCH = 64  # images, each with all its views


@dataclass(frozen=True)
class Split:
    """Features of a part of a data set.

    Attributes:
        features: (N, 1 + V, D), the centre view first.
        labels: (N,) class numbers.
        classes: How many classes there are.
    """

    features: Tensor
    labels: Tensor
    classes: int


Fit = Callable[[Split, int], tuple[Callable[[Tensor], Tensor], Mapping[str, object]]]


def evaluate(protocol: str, fit: Fit, argv: list[str], *, views: int) -> int:
    """Command line of one protocol: measure one subject on one data set and append the number to results.csv.

    Args:
        protocol: Its name.
        fit: Training split, seed -> function from features (N, D) to class numbers (N,), and the settings chosen.
        argv: Words after the protocol's name.
        views: Random views an image besides the centre view, by default; 0 for protocols without.
    """
    options = _parse(protocol, argv, views)
    folder = Path(options.data)
    train, test = open_splits(folder)
    subject = open_subject(options.model, options.seed, train)
    result = measure(
        protocol, fit, subject, (train, test), data=results.data_name(folder), seed=options.seed,
        views=min(options.views, subject.max_views), device=options.device, workers=options.workers,
    )  # fmt: skip
    results.append(result, options.results)
    print(f"{result.model}  {protocol} {result.metric} on {result.data}: {result.value:.4f}  ({result.settings})")
    print(f"appended to {options.results}", file=sys.stderr)
    return 0


def _parse(protocol: str, argv: list[str], views: int) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m sslzoo_evaluations {protocol}")
    parser.add_argument("model", help="zoo id, folder of a run, random:ID, random:ARCH@SIZE, pixels, or pixels:tophalf")
    parser.add_argument("--data", required=True, help="folder with train/ and test/, each with one sub-folder a class")
    parser.add_argument("--seed", type=int, default=0, help="of everything random, random weights too")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--workers", type=int, default=min(8, cores), help="processes that read images")
    parser.add_argument("--results", type=Path, default=results.default_file(), help="CSV to append to")
    if views:
        parser.add_argument("--views", type=int, default=views, help="random views of each training image")
    else:
        parser.set_defaults(views=0)
    return parser.parse_args(argv)


def measure(
    protocol: str, fit: Fit, subject: Subject, data_splits: tuple[ImageSet, ImageSet], *, data: str, seed: int,
    views: int, device: str = "cpu", workers: int = 0,
) -> results.Result:  # fmt: skip
    """Measure top-1 accuracy: fit on the training split, then test once on centre views.

    Args:
        protocol: Name for the result.
        fit: See `evaluate`.
        subject: What to evaluate.
        data_splits: Training and test images, both labelled.
        data: Name of the data for the result.
        seed: Of everything random.
        views: Random views an image besides the centre view, of the training images.
        device: Where to compute.
        workers: Processes that read images; the result does not depend on them.

    Raises:
        EvaluationError: An image cannot be read.
    """
    train, test = data_splits
    classes = len(train.classes or ())
    extract = partial(features, subject, seed=seed, device=device, workers=workers)
    training = Split(extract(train, views=views), _labels(train, device), classes)
    predict, chosen = fit(training, seed)
    wanted = _labels(test, device)
    right = predict(extract(test, views=0)[:, 0]) == wanted
    settings = ({"views": views} if views else {}) | dict(chosen)
    return results.new(
        model=subject.name, protocol=protocol, data=data, metric="top1", value=float(right.double().mean()), seed=seed,
        n_train=len(train), n_test=len(test), sha256=subject.sha256,
        settings=" ".join(f"{key}={value}" for key, value in settings.items()),
    )  # fmt: skip


def open_splits(folder: Path) -> tuple[ImageSet, ImageSet]:
    """Open FOLDER/train and FOLDER/test.

    Raises:
        EvaluationError: One is missing, has no classes, or other classes than the other.
    """
    opened = []
    for name in ("train", "test"):
        if not (folder / name).is_dir():
            raise EvaluationError(
                f"{folder} has no folder {name}/. It needs train/ and test/, one sub-folder a class in each."
            )
        images = open_images(folder / name)
        if images.labels is None or len(images.classes or ()) < 2:
            raise EvaluationError(f"{folder / name} needs its images in two or more sub-folders, one a class.")
        opened.append(images)
    train, test = opened
    if train.classes != test.classes:
        odd = sorted(set(train.classes or ()) ^ set(test.classes or ()))
        raise EvaluationError(f"{folder}: train/ and test/ have other classes; only one of them has {', '.join(odd)}.")
    return train, test


class _Views(Dataset[tuple[Tensor, Tensor] | str]):
    """Centre view (C, H, W), normalised, and random views (V, C, H, W), uint8, of each image; or why there are none.

    Random views depend on seed and position only.
    """

    def __init__(self, subject: Subject, images: ImageSet, views: int, seed: int) -> None:
        self.centre, self.view = subject.centre, subject.view  # not the network: workers need no copy of it
        self.images, self.views, self.seed = images, views, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor] | str:
        try:
            image = self.images[i]
            centre = self.centre(image)
        except (UnreadableImageError, EvaluationError) as error:
            return f"{self.images.names[i]}: {error}"
        random = Random(f"{self.seed} {i}")
        views = [to_tensor(self.view(image, random)) for _ in range(self.views)]
        return centre, torch.stack(views) if views else torch.empty(0, *centre.shape, dtype=torch.uint8)


def _collate(items: list[tuple[Tensor, Tensor] | str]) -> tuple[Tensor, Tensor] | str:
    pairs = [item for item in items if not isinstance(item, str)]
    if len(pairs) < len(items):
        return next(item for item in items if isinstance(item, str))
    centres, views = zip(*pairs, strict=True)
    return torch.stack(centres), torch.stack(views)


@torch.inference_mode()
def features(
    subject: Subject, images: ImageSet, *, views: int, seed: int, device: str = "cpu", workers: int = 0
) -> Tensor:
    """Features (N, 1 + views, D), float32 on `device`, of the centre view and random views of each image.

    Raises:
        EvaluationError: An image cannot be read: a number on part of a data set is another number.
    """
    encode = subject.encode.eval().to(device).to(memory_format=torch.channels_last)
    loader = DataLoader(_Views(subject, images, views, seed), BATCH, num_workers=workers, collate_fn=_collate)
    out, done = torch.empty(0), 0
    with tqdm(total=len(images), unit="image", file=sys.stderr, desc=subject.name, disable=None) as bar:
        for batch in loader:
            if isinstance(batch, str):
                raise EvaluationError(f"{batch}. Repair or remove it: an accuracy is one of the whole data set.")
            centre, others = (part.to(device) for part in batch)
            normalised = normalise(others.flatten(0, 1), subject.mean, subject.std).view_as(others)
            flat = torch.cat([centre[:, None], normalised], 1).flatten(0, 1)
            part = encode(flat).float().view(len(centre), 1 + views, -1)
            if not done:
                out = torch.empty(len(images), *part.shape[1:], device=device)
            out[done : done + len(part)] = part
            done += len(part)
            bar.update(len(part))
    return out


def _labels(images: ImageSet, device: str) -> Tensor:
    return torch.as_tensor(images.labels, device=device)
