"""Detection: fine-tune heads on an encoder with boxes, test average precision; --scratch: from random weights too.

python -m sslzoo_evaluations detection byol-resnet18quarter-cifar10 --data BCCD --scratch

For each head and seed one detector is trained on the training split for a fixed number of steps, and the last step is
tested. Settings were fixed beforehand, on the validation split, apart for pretrained and random weights; nothing is
chosen on test images. Without options images are reduced to a shorter side of 240 pixels, for CPUs: give --image-size
and --steps for more. (Protocol of papers on self-supervision, such as He et al. 2020, https://arxiv.org/abs/1911.05722,
Sec. 4.2, which fine-tune Faster R-CNN as a whole.)

Each result is appended to results.csv as soon as there is one, and what is there is not measured again: the same
command goes on after a kill, and several with other --seeds may run side by side.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from sslzoo.boxes import BoxSet, open_boxes
from sslzoo.card import data_title
from sslzoo.encoder import Encoder
from sslzoo.heads.average_precision import AveragePrecision, packed
from sslzoo.heads.detection_networks import HEADS
from sslzoo.heads.detections import Detections
from sslzoo.heads.detector import Detector, detector

from . import results, transfer
from .results import Result, cell
from .subjects import EvaluationError, Subject
from .transfer import LAYER_DECAY, PRETRAINED, SCRATCH, WEIGHT_DECAY, Job, Trial

DEFAULT_HEADS = ("faster-rcnn", "retinanet")
STEPS = 350
BATCH = 4
IMAGE_SIZE = 240
PROPOSALS = 128
LR = {PRETRAINED: 2e-3, SCRATCH: 2e-3}
FROZEN_NORMS = False  # with them, of 70 steps from the encoder, AP50 0.53 instead of 0.71 on a part of val
METRICS = ("ap", "ap50", "ap75")
PREFIX = "detection-"


@dataclass(frozen=True, eq=False)
class Bench:
    """What all jobs share: the encoder's name, the images, and the budget."""

    model: str
    data: str
    train: BoxSet
    test: BoxSet
    steps: int
    batch_size: int
    image_size: int
    device: str

    def trial(self, job: Job) -> Trial:
        """What a job trains, and what its results are known by."""
        subject = transfer.starting_point(self.model, job.start, job.seed, self.train.images)
        counts = len(self.train), len(self.test)
        return Trial(subject, PREFIX + job.head, self.data, job.seed, *counts, self.settings(job))

    def settings(self, job: Job) -> str:
        """What results.csv says of a job's settings."""
        return (
            f"image_size={self.image_size} proposals={PROPOSALS} steps={self.steps} batch_size={self.batch_size} "
            f"lr={LR[job.start]:g} weight_decay={WEIGHT_DECAY:g} layer_decay={LAYER_DECAY[job.start]:g} "
            f"frozen_norms={FROZEN_NORMS}"
        )


def main(argv: list[str]) -> int:
    """`python -m sslzoo_evaluations detection ID --data FOLDER`."""
    options = _parse(argv)
    torch.set_num_threads(options.threads)
    print(f"images reduced to a shorter side of {options.image_size} pixels", file=sys.stderr)
    bench = Bench(
        options.model, results.data_name(options.data), *open_splits(options.data), options.steps, options.batch_size,
        options.image_size, options.device,
    )  # fmt: skip
    for result in measure(bench, transfer.jobs(options), options.results, options.pictures):
        print(transfer.show(result), flush=True)
    print(table([row for row in results.latest(results.read(options.results)) if row.data == bench.data]))
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    data = "folder in VOC's layout with the splits train and test, or with folders train/ and test/ of what "
    data += "sslzoo.open_boxes takes"
    parser = transfer.head_parser("detection", HEADS, DEFAULT_HEADS, data=data, steps=STEPS, batch_size=BATCH)
    parser.add_argument("--image-size", type=int, default=IMAGE_SIZE, help="shorter side of images, pixels")
    parser.add_argument("--pictures", type=Path, default=Path(), help="folder for pictures beside ground truth")
    return parser.parse_args(argv)


def open_splits(folder: Path) -> tuple[BoxSet, BoxSet]:
    """Open the training and the test split of a folder, the latter with the classes of the former.

    Raises:
        EvaluationError: One is missing.
    """
    opened: list[BoxSet] = []
    for name in ("train", "test"):
        places = [folder / "ImageSets" / "Main" / f"{name}.txt", folder / name]
        found = next((place for place in places if place.exists()), None)
        if found is None:
            raise EvaluationError(f"{folder} has no split {name}: looked for {' and '.join(map(str, places))}.")
        opened.append(open_boxes(found, classes=opened[0].classes if opened else None))
    return opened[0], opened[1]


def measure(bench: Bench, jobs: Sequence[Job], file: Path, pictures: Path) -> Iterator[Result]:
    """Do the jobs that the file has no rows for, append their results to it, and return them."""
    for job in jobs:
        trial = bench.trial(job)
        yield from transfer.once(trial, METRICS, partial(_figures, bench, job, trial.subject, pictures), file)


def _figures(bench: Bench, job: Job, subject: Subject, pictures: Path) -> tuple[dict[str, float], str]:
    """Train, test, and draw pictures."""
    model = trained(bench, subject, job)
    found = model.predict(bench.test.images, min_score=0.0)
    if found.skipped:
        raise EvaluationError(f"{': '.join(found.skipped[0])}. Repair or remove it: a figure is of the whole set.")
    name = f"detection-{subject.name.replace(':', '-')}-{job.head}-{bench.data}-{job.seed}.png"
    picture(model, bench.test, pictures / name, f"{subject.name}, {job.head}, {bench.data}, test images")
    return score(found, bench.test), ""


def trained(bench: Bench, subject: Subject, job: Job) -> Detector:
    """The detector of a job, after all of its steps."""
    assert isinstance(subject.encode, Encoder)
    model = detector(
        subject.encode, classes=bench.train.classes, head=job.head, image_size=bench.image_size,
        proposals=PROPOSALS, frozen_norms=FROZEN_NORMS, seed=job.seed,
    )  # fmt: skip
    transfer.finetune_all(
        model, bench.train, steps=bench.steps, batch_size=bench.batch_size, lr=LR[job.start],
        layer_decay=LAYER_DECAY[job.start], seed=job.seed, device=bench.device,
    )  # fmt: skip
    return model


def score(found: Detections, truth: BoxSet) -> dict[str, float]:
    """Average precision of what was found in all images of a set."""
    meter = AveragePrecision(truth.classes)
    for said, true in zip(found.found, truth.boxes, strict=True):
        tensors = (torch.from_numpy(array) for array in (said.xyxy, said.scores, said.labels))
        wanted = (torch.from_numpy(array) for array in (true.xyxy, true.crowd, true.labels))
        meter.update(packed(*([tensor] for tensor in tensors)), packed(*([tensor] for tensor in wanted)))
    return meter.compute()


def picture(model: Detector, test: BoxSet, path: Path, title: str) -> None:
    """Draw some test images with true boxes, and beside them with those that the model finds."""
    shown = test.subset(range(min(4, len(test))))
    model.predict(shown.images).picture(path, title, truth=shown.boxes)


def table(rows: Sequence[Result]) -> str:
    """Markdown, a table for each data set: average precisions of each head and start; mean ± sd over seeds.

    Args:
        rows: Of results.csv, none replaced by a later one.
    """
    own = [row for row in rows if row.protocol.startswith(PREFIX)]
    return "\n\n".join(_table(data, part) for data, part in results.by_data(own).items())


def _table(data: str, rows: Sequence[Result]) -> str:
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in rows:
        figures = found.setdefault((row.protocol.removeprefix(PREFIX), row.model), {})
        figures.setdefault(row.metric, []).append(row.value)
    header = " | ".join(metric.upper() for metric in METRICS)
    lines = [f"| {data_title(data)}, test | from | {header} |", "| --- | --- |" + " ---: |" * len(METRICS)]
    for (head, model), figures in found.items():
        lines.append(f"| {head} | `{model}` | {' | '.join(cell(figures.get(metric, [])) for metric in METRICS)} |")
    return "\n".join(lines)
