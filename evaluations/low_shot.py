"""Low-shot transfer: a part of the labels, for a probe of frozen features, for fine-tuning, and from scratch.

For each fraction of the labels and each seed, which decides on the images of that part:
    low_shot-probe-1%      the linear probe of linear.py on the encoder's frozen features
    low_shot-finetune-1%   the encoder with a classifier, fine-tuned; and the same network from random weights
All fine-tuning has the same number of steps, the last of which is tested. Learning rates were fixed beforehand, for
byol-resnet18quarter-cifar10 and from scratch apart, on training images that were held out from short runs on others;
nothing is chosen on test images. (Semi-supervised protocol of Grill et al. 2020,
https://arxiv.org/abs/2006.07733, Sec. 4.1 and App. C.3, which chooses the learning rate on a part of the test split.)

python -m sslzoo_evaluations low_shot byol-resnet18quarter-cifar10 --data cifar10

Each number is appended to results.csv as soon as there is one, and numbers that are there are not measured again: the
same command goes on after a kill, and several with other --seeds may run side by side.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from sslzoo import plots
from sslzoo.card import data_title
from sslzoo.data import ImageSet, UnreadableImageError, open_images
from sslzoo.encoder import Encoder
from sslzoo.heads.classifier import classifier
from sslzoo.splits import stratified_split

from . import linear, results, transfer
from .protocol import Split, features, open_splits
from .results import Result, cell, spread
from .subjects import EvaluationError, Subject
from .transfer import LAYER_DECAY, PRETRAINED, SCRATCH, WEIGHT_DECAY, Trial

FRACTIONS = (0.01, 0.1, 1.0)
STEPS = 1500
BATCH = 64
LR = {PRETRAINED: 3e-3, SCRATCH: 3e-3}  # of 1e-3 and 3e-3; see the docstring
PREFIX = "low_shot-"
TITLES = {"finetune": "fine-tuned", "probe": "linear probe, frozen", SCRATCH: "from scratch"}


@dataclass(frozen=True)
class Job:
    """One number to measure.

    Attributes:
        kind: "probe", "finetune", or "scratch": fine-tuned from random weights.
        fraction: Of the labels of each class, in (0, 1].
        seed: Of the choice of images, and of all else that is random.
    """

    kind: str
    fraction: float
    seed: int

    @property
    def protocol(self) -> str:
        """As results.csv has it."""
        return f"{PREFIX}{'probe' if self.kind == 'probe' else 'finetune'}-{100 * self.fraction:g}%"

    @property
    def start(self) -> str:
        """Of the network."""
        return SCRATCH if self.kind == SCRATCH else PRETRAINED


@dataclass(frozen=True, eq=False)
class Bench:
    """What all jobs share: the names of encoder and data, the images in memory, and the budget."""

    model: str
    data: str
    train: ImageSet
    test: ImageSet
    steps: int
    batch_size: int
    views: int
    device: str

    def part(self, job: Job) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Positions of the training images whose labels the job knows."""
        if job.fraction == 1:
            return np.arange(len(self.train))
        return stratified_split(self.train.labels, job.fraction, job.seed)[1]

    def trial(self, job: Job) -> Trial:
        """What a job trains, and what its result is known by."""
        subject = transfer.starting_point(self.model, job.start, job.seed, self.train)
        counts = len(self.part(job)), len(self.test)
        return Trial(subject, job.protocol, self.data, job.seed, *counts, self.settings(job))

    def settings(self, job: Job) -> str:
        """What is known of a job's settings before it runs."""
        if job.kind == "probe":
            return f"views={self.views}"
        return (
            f"steps={self.steps} batch_size={self.batch_size} lr={LR[job.start]:g} weight_decay={WEIGHT_DECAY:g} "
            f"layer_decay={LAYER_DECAY[job.start]:g}"
        )


def main(argv: list[str]) -> int:
    """`python -m sslzoo_evaluations low_shot ID --data FOLDER`."""
    options = _parse(argv)
    torch.set_num_threads(options.threads)
    train, test = open_splits(options.data)
    bench = Bench(
        options.model, results.data_name(options.data), in_memory(train), in_memory(test), options.steps,
        options.batch_size, options.views, options.device,
    )  # fmt: skip
    jobs = [
        Job(kind, fraction, seed) for seed in options.seeds for fraction in options.fractions for kind in options.kinds
    ]
    for result in measure(bench, jobs, options.results):
        print(transfer.show(result), flush=True)
    name, network = (bench.trial(Job(kind, 1, 0)).subject.name for kind in ("finetune", SCRATCH))
    rows = results.latest(results.read(options.results))
    print(table([row for row in rows if row.data == bench.data], {name: network}))
    picture(rows, name, network, bench.data, options.picture or _default_picture(name, bench.data))
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    data = "folder with train/ and test/, each with one sub-folder a class"
    parser = transfer.parser("low_shot", data=data, steps=STEPS, batch_size=BATCH)
    parser.add_argument("--fractions", type=_fraction, nargs="+", default=FRACTIONS, help="of the labels, such as 0.01")
    parser.add_argument("--kinds", nargs="+", choices=list(TITLES), default=["probe", "finetune", SCRATCH])
    parser.add_argument("--views", type=int, default=linear.VIEWS, help="random views of each image, for the probe")
    parser.add_argument("--picture", type=Path, help="PNG file for the curves; default: in the current folder")
    return parser.parse_args(argv)


def _default_picture(model: str, data: str) -> Path:
    return Path(f"low-shot-{model.replace(':', '-')}-{data}.png")


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no part of the labels: above 0, at most 1")
    return value


def in_memory(images: ImageSet) -> ImageSet:
    """The same images decoded, so that no epoch does it again.

    Raises:
        EvaluationError: One cannot be read: a number on part of a data set is another number.
    """
    try:
        arrays = [np.asarray(images[i]) for i in range(len(images))]
    except UnreadableImageError as error:
        raise EvaluationError(f"{error}. Repair or remove it: an accuracy is one of the whole data set.") from error
    decoded = open_images(np.stack(arrays) if len({array.shape for array in arrays}) == 1 else arrays)
    decoded.labels, decoded.classes = images.labels, images.classes
    return decoded


def measure(bench: Bench, jobs: Sequence[Job], file: Path) -> Iterator[Result]:
    """Do the jobs that the file has no row for, append each result to it, and return it."""
    probe: Probe | None = None

    def accuracy(job: Job, subject: Subject) -> tuple[dict[str, float], str]:
        nonlocal probe
        if job.kind != "probe":
            return {"top1": finetuned_accuracy(bench, subject, job)}, ""
        probe = probe or Probe(bench, subject)
        value, chosen = probe.accuracy(job)
        return {"top1": value}, chosen

    for job in jobs:
        trial = bench.trial(job)
        yield from transfer.once(trial, ["top1"], partial(accuracy, job, trial.subject), file)


class Probe:
    """Linear probes on parts of one set of frozen features, which are computed once."""

    def __init__(self, bench: Bench, subject: Subject) -> None:
        self.bench = bench
        self.features = features(subject, bench.train, views=bench.views, seed=0, device=bench.device)
        self.test = features(subject, bench.test, views=0, seed=0, device=bench.device)[:, 0]

    def accuracy(self, job: Job) -> tuple[float, str]:
        """On the test images; and what was chosen on a held-out part of the labels."""
        part = self.bench.part(job)
        labels = torch.as_tensor(self.bench.train.labels, device=self.features.device)
        train = Split(self.features[part], labels[part], len(self.bench.train.classes or ()))
        predict, chosen = linear.fit(train, job.seed)
        wanted = torch.as_tensor(self.bench.test.labels, device=self.features.device)
        right = (predict(self.test) == wanted).double().mean()
        return float(right), " ".join(f"{key}={value}" for key, value in chosen.items())


def finetuned_accuracy(bench: Bench, subject: Subject, job: Job) -> float:
    """Fine-tune on the job's part of the labels, for all steps, and test once."""
    assert isinstance(subject.encode, Encoder)
    model = classifier(subject.encode, classes=bench.train.classes)
    transfer.finetune_all(
        model, bench.train.subset(bench.part(job)), steps=bench.steps, batch_size=bench.batch_size, lr=LR[job.start],
        layer_decay=LAYER_DECAY[job.start], seed=job.seed, device=bench.device,
    )  # fmt: skip
    said = model.predict(bench.test, batch_size=250).probabilities.argmax(axis=1)
    return float(np.mean(said == bench.test.labels))


def is_low_shot(row: Result) -> bool:
    """Whether a row of results.csv is from here."""
    return row.protocol.startswith(PREFIX)


Curves = dict[str, dict[int, list[float]]]  # kind -> number of training images -> accuracies, one a seed


def curves(rows: Sequence[Result], model: str, network: str, data: str) -> Curves:
    """What is known of an encoder and, from scratch, of its network ("random:ARCH@SIZE")."""
    found: Curves = {}
    for kind in TITLES:
        name, protocol = (network, "finetune") if kind == SCRATCH else (model, kind)
        for row in rows:
            if (row.model, row.data) == (name, data) and row.protocol.startswith(f"{PREFIX}{protocol}-"):
                found.setdefault(kind, {}).setdefault(row.n_train, []).append(row.value)
    return found


def table(rows: Sequence[Result], networks: Mapping[str, str]) -> str:
    """Markdown, a table for each encoder and data set: mean ± standard deviation by kind and number of labels.

    Args:
        rows: Of results.csv, none replaced by a later one.
        networks: Encoder -> its network from scratch, as results.csv has it.
    """
    low_shot = [row for row in rows if is_low_shot(row)]
    tables = []
    for model, data in dict.fromkeys((row.model, row.data) for row in low_shot if row.model in networks):
        found = curves(low_shot, model, networks[model], data)
        counts = sorted({count for curve in found.values() for count in curve})
        lines = [
            f"| `{model}`: top-1 accuracy on {data_title(data)}, test | {' | '.join(map(_labels, counts))} |",
            f"| --- |{' ---: |' * len(counts)}",
            *(
                f"| {TITLES[kind]} | {' | '.join(cell(curve.get(count, [])) for count in counts)} |"
                for kind, curve in found.items()
            ),
        ]
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def picture(rows: Sequence[Result], model: str, network: str, data: str, path: Path) -> None:
    """Draw the curves of one encoder as a PNG file."""
    found = curves(rows, model, network, data)
    means = {TITLES[k]: {count: mean(values) for count, values in curve.items()} for k, curve in found.items()}
    spreads = {TITLES[k]: {count: spread(values) for count, values in curve.items()} for k, curve in found.items()}
    title = f"{model} on {data_title(data)}: mean and standard deviation over seeds"
    plots.curves_picture(means, path, title, errors=spreads, x_label="labelled training images")


def _labels(count: int) -> str:
    return f"{count:,} labels".replace(",", " ")
