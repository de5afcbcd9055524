"""Object detection: fine-tuned from an encoder, or from scratch with the same budget; average precision on test images.

    python -m sslzoo_evaluations detection byol-resnet18quarter-cifar10 --data BCCD
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
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory

import torch

from sslzoo.boxes import BoxSet, open_boxes
from sslzoo.encoder import Encoder
from sslzoo.finetuning import finetune
from sslzoo.heads.average_precision import AveragePrecision, packed
from sslzoo.heads.detection_networks import HEADS
from sslzoo.heads.detections import Detections
from sslzoo.heads.detector import Detector, detector
from sslzoo.provenance import commit
from sslzoo.weights import WeightsError
from sslzoo.zoo import UnknownModelError

from . import results
from .results import Result
from .subjects import EvaluationError, Subject, open_subject

SEEDS = (0, 1, 2)
STEPS = 350
BATCH = 4
IMAGE_SIZE = 240
PROPOSALS = 128
LR = {"pretrained": 2e-3, "scratch": 2e-3}
LAYER_DECAY = {"pretrained": 0.8, "scratch": 1.0}  # random layers have nothing to keep
FROZEN_NORMS = False  # with them, of 70 steps from the encoder, AP50 0.53 instead of 0.71 on a part of val
WEIGHT_DECAY = 0.05
METRICS = ("ap", "ap50", "ap75")
PREFIX = "detection-"


@dataclass(frozen=True)
class Job:
    """One detector to train and test.

    Attributes:
        head: Of `detection_networks.HEADS`.
        start: "pretrained" or "scratch".
        seed: Of all that is random.
    """

    head: str
    start: str
    seed: int

    @property
    def protocol(self) -> str:
        """As results.csv has it."""
        return f"{PREFIX}{self.head}"


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

    def subject(self, job: Job) -> Subject:
        """The encoder of a job, or the same network with random weights."""
        subject = open_subject(self.model, job.seed, self.train.images)
        if not isinstance(subject.encode, Encoder):
            raise EvaluationError(f"{self.model} has no weights to fine-tune; a zoo id or the folder of a run has.")
        if job.start == "pretrained":
            return subject
        encoder = subject.encode
        return open_subject(f"random:{encoder.arch}@{encoder.input_size[1]}", job.seed, self.train.images)

    def settings(self, job: Job) -> str:
        """What results.csv says of a job's settings."""
        start = job.start
        return (
            f"image_size={self.image_size} proposals={PROPOSALS} steps={self.steps} batch_size={self.batch_size} "
            f"lr={LR[start]:g} weight_decay={WEIGHT_DECAY:g} layer_decay={LAYER_DECAY[start]:g} "
            f"frozen_norms={FROZEN_NORMS}"
        )


def main(argv: list[str]) -> int:
    """`python -m sslzoo_evaluations detection ID --data FOLDER`."""
    options = _parse(argv)
    torch.set_num_threads(options.threads)
    start = "scratch" if options.scratch else "pretrained"
    try:
        folder = Path(options.data)
        train, test = open_splits(folder)
        bench = Bench(
            options.model, folder.resolve().name.lower(), train, test, options.steps, options.batch_size,
            options.image_size, options.device,
        )  # fmt: skip
        print(f"images reduced to a shorter side of {options.image_size} pixels", file=sys.stderr)
        jobs = [Job(head, start, seed) for seed in options.seeds for head in options.heads]
        for result in measure(bench, jobs, options.results, options.pictures):
            print(
                f"{result.model}  {result.protocol}  {result.metric}, seed {result.seed}: {result.value:.4f}",
                flush=True,
            )
        print(table([row for row in results.latest(results.read(options.results)) if row.data == bench.data]))
    except (EvaluationError, OSError, ValueError, WeightsError, UnknownModelError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m sslzoo_evaluations detection")
    parser.add_argument("model", help="zoo id, or folder of a run")
    parser.add_argument("--data", required=True, help="folder in VOC's layout with the splits train and test, or with "
                        "folders train/ and test/ of what sslzoo.open_boxes takes")  # fmt: skip
    parser.add_argument("--scratch", action="store_true", help="start from random weights instead")
    parser.add_argument("--heads", nargs="+", choices=list(HEADS), default=["faster-rcnn", "retinanet"])
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--batch-size", type=int, default=BATCH)
    parser.add_argument("--image-size", type=int, default=IMAGE_SIZE, help="shorter side of images, pixels")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="of torch, on a CPU")
    parser.add_argument("--results", type=Path, default=results.default_file(), help="CSV to append to")
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
        subject, known = bench.subject(job), results.read(file) if file.exists() else []
        if all(any(_same(row, subject, job, bench, metric) for row in known) for metric in METRICS):
            continue
        model = trained(bench, subject, job)
        found = model.predict(bench.test.images, min_score=0.0)
        if found.skipped:
            raise EvaluationError(f"{': '.join(found.skipped[0])}. Repair or remove it: a figure is of the whole set.")
        name = f"detection-{subject.name.replace(':', '-')}-{job.head}-{bench.data}-{job.seed}.png"
        picture(model, bench.test, pictures / name, f"{subject.name}, {job.head}, {bench.data}, test images")
        figures = score(found, bench.test)
        for metric in METRICS:
            result = Result(
                model=subject.name, protocol=job.protocol, data=bench.data, metric=metric,
                value=round(figures[metric], 4), seed=job.seed, n_train=len(bench.train), n_test=len(bench.test),
                sha256=subject.sha256, settings=bench.settings(job),
                commit=commit(results.PACKAGED.parent, ignore=results.PACKAGED.name),
                date=datetime.now(UTC).date().isoformat(),
            )  # fmt: skip
            results.append(result, file)
            yield result


def _same(row: Result, subject: Subject, job: Job, bench: Bench, metric: str) -> bool:
    """Whether a row answers a job: whatever commit it is of."""
    return (
        row.key == (subject.name, job.protocol, bench.data, metric, job.seed)
        and (row.n_train, row.n_test, row.sha256) == (len(bench.train), len(bench.test), subject.sha256)
        and row.settings == bench.settings(job)
    )


def trained(bench: Bench, subject: Subject, job: Job) -> Detector:
    """The detector of a job, after all of its steps."""
    assert isinstance(subject.encode, Encoder)
    model = detector(
        subject.encode, classes=bench.train.classes, head=job.head, image_size=bench.image_size,
        proposals=PROPOSALS, frozen_norms=FROZEN_NORMS, seed=job.seed,
    )  # fmt: skip
    with TemporaryDirectory() as folder:
        finetune(
            model, bench.train, out=folder, steps=bench.steps, batch_size=bench.batch_size, lr=LR[job.start],
            weight_decay=WEIGHT_DECAY, layer_decay=LAYER_DECAY[job.start], val_fraction=0, seed=job.seed,
            num_workers=0, device=bench.device, progress=sys.stderr.isatty(),
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
    """Markdown: mean ± standard deviation over seeds, by model and head, of each metric."""
    own = [row for row in rows if row.protocol.startswith(PREFIX)]
    lines = [
        f"| detection, test | head | {' | '.join(name.upper() for name in METRICS)} |",
        "| --- | --- |" + " ---: |" * 3,
    ]
    for model, protocol, data in dict.fromkeys((row.model, row.protocol, row.data) for row in own):
        values = {
            metric: [r.value for r in own if (r.model, r.protocol, r.data, r.metric) == (model, protocol, data, metric)]
            for metric in METRICS
        }
        cells = " | ".join(_cell(values[metric]) for metric in METRICS)
        lines.append(f"| `{model}` on {data} | {protocol.removeprefix(PREFIX)} | {cells} |")
    return "\n".join(lines)


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "–"
    spread = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.1f}{spread}"
