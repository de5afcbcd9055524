"""Segmentation: fine-tune heads on an encoder with masks, test mean IoU; --scratch: the same from random weights too.

For each head and seed one fine-tuning on train/ with a fixed number of steps, whose last one is tested on test/: masks
are predicted in the images' own size and compared with the true ones as they are. Learning rates were chosen before
that, for encoder and scratch apart, on val/ of CamVid; nothing is chosen on test images.

python -m sslzoo_evaluations segmentation byol-resnet18quarter-cifar10 --data camvid --scratch --output-stride 16 --bf16

Each number is appended to results.csv as soon as there is one, and numbers that are there are not measured again: the
same command goes on after a kill, and several with other --seeds may run side by side.
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
from PIL import Image

from sslzoo import plots
from sslzoo.class_table import ClassTable, palette
from sslzoo.data import EmptyDatasetError, UnreadableImageError
from sslzoo.encoder import Encoder
from sslzoo.finetuning import finetune
from sslzoo.heads import decoders
from sslzoo.heads.segmentations import Segmentations
from sslzoo.heads.segmenter import Overlap, Segmenter, confusion, segmenter
from sslzoo.masks import Mask, MaskSet, open_masks
from sslzoo.provenance import commit
from sslzoo.weights import WeightsError
from sslzoo.zoo import UnknownModelError

from . import results
from .results import Result
from .subjects import EvaluationError, Subject, open_subject

HEADS = ("fcn8s", "fcn", "deeplabv3", "deeplabv3plus")
SEEDS = (0, 1, 2)
STEPS = 300
BATCH = 8
IMAGE_SIZE = (192, 256)
LR = {"pretrained": 1e-2, "scratch": 1e-2}  # of 3e-3 and 1e-2, by fcn8s in 150 steps; see the docstring
LAYER_DECAY = {"pretrained": 0.8, "scratch": 1.0}  # 0.8 of 0.8 and 1; random layers have nothing to keep
WEIGHT_DECAY = 0.05
PREFIX = "segmentation-"
METRICS = ("miou", "pixel_accuracy")
PICTURED = 3  # test images
# Data sets whose folders have no class file.
KNOWN = {
    "camvid": ClassTable(
        (
            "sky", "building", "pole", "road", "pavement", "tree", "sign symbol", "fence", "car", "pedestrian",
            "bicyclist", "void",
        )
    )
}  # fmt: skip
COLOURS = {
    "camvid": (
        (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (0, 0, 192), (128, 128, 0), (192, 128, 128),
        (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
    )
}  # fmt: skip  # as the data set's authors draw them


@dataclass(frozen=True)
class Job:
    """One fine-tuning.

    Attributes:
        head: A name of `sslzoo.heads.decoders.HEADS`.
        start: "pretrained" or "scratch".
        seed: Of everything random.
    """

    head: str
    start: str
    seed: int


@dataclass(frozen=True, eq=False)
class Bench:
    """What all jobs share: the encoder's name, the data, and the budget."""

    model: str
    data: str
    train: MaskSet
    test: MaskSet
    options: argparse.Namespace

    def subject(self, job: Job) -> Subject:
        """The encoder of a job, or the same network with random weights."""
        subject = open_subject(self.model, job.seed, self.train.images)
        if not isinstance(subject.encode, Encoder):
            raise EvaluationError(f"{self.model} has no weights to fine-tune; a zoo id or the folder of a run has.")
        if job.start == "pretrained":
            return subject
        return open_subject(f"random:{subject.encode.arch}@{subject.encode.input_size[1]}", job.seed, self.train.images)

    def settings(self, job: Job) -> str:
        """Of a job, as results.csv has them."""
        height, width = self.options.image_size
        text = f"steps={self.options.steps} batch_size={self.options.batch_size} lr={self.lr(job):g}"
        text += f" weight_decay={WEIGHT_DECAY:g} layer_decay={self.layer_decay(job):g} image_size={height}x{width}"
        return f"{text} output_stride={self.stride(job)} precision={'bf16' if self.options.bf16 else 'float32'}"

    def lr(self, job: Job) -> float:
        """At its peak."""
        return LR[job.start] if self.options.lr is None else float(self.options.lr)

    def layer_decay(self, job: Job) -> float:
        """Learning rate of a layer of the encoder, as a part of the next one's."""
        return LAYER_DECAY[job.start] if self.options.layer_decay is None else float(self.options.layer_decay)

    def stride(self, job: Job) -> int:
        """Of the coarsest maps: what was asked for, where the head takes it."""
        strides = decoders.HEADS[job.head].output_strides
        return int(self.options.output_stride) if self.options.output_stride in strides else strides[0]


def main(argv: list[str]) -> int:
    """Command line."""
    options = _parse(argv)
    torch.set_num_threads(options.threads)
    try:
        folder = Path(options.data)
        name = folder.resolve().name.lower()
        train, test = (_open(folder / part, name) for part in ("train", options.test))
        bench = Bench(options.model, name, train, test, options)
        starts = ["pretrained", *(["scratch"] if options.scratch else [])]
        jobs = [Job(head, start, seed) for seed in options.seeds for head in options.heads for start in starts]
        for result in measure(bench, jobs, options.results):
            print(
                f"{result.model}  {result.protocol}  seed {result.seed}: {result.metric} {result.value:.4f}", flush=True
            )
        rows = results.latest(results.read(options.results))
        print(table([row for row in rows if row.data == name and is_segmentation(row)]))
    except (
        EvaluationError,
        EmptyDatasetError,
        OSError,
        WeightsError,
        UnknownModelError,
        UnreadableImageError,
    ) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m sslzoo_evaluations segmentation")
    parser.add_argument("model", help="zoo id, or folder of a run")
    parser.add_argument("--data", required=True, help="folder with train/ and test/, each with images/ and masks/")
    parser.add_argument("--test", default="test", help="the part that is tested on; val to choose settings")
    parser.add_argument("--scratch", action="store_true", help="the same network from random weights, too")
    parser.add_argument("--heads", nargs="+", choices=list(decoders.HEADS), default=HEADS)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--steps", type=int, default=STEPS, help="of every fine-tuning")
    parser.add_argument("--batch-size", type=int, default=BATCH)
    parser.add_argument("--image-size", type=_size, default=IMAGE_SIZE, metavar="HEIGHTxWIDTH")
    parser.add_argument("--output-stride", type=int, help="of heads that take it; default: the head's")
    parser.add_argument("--lr", type=float, help="default: see the docstring")
    parser.add_argument("--layer-decay", type=float, help="default: see the docstring")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="of torch, on a CPU")
    parser.add_argument("--results", type=Path, default=results.default_file(), help="CSV to append to")
    parser.add_argument("--picture", type=Path, help="PNG file; -HEAD-START is put before its suffix")
    return parser.parse_args(argv)


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise argparse.ArgumentTypeError(f"{text} is not HEIGHTxWIDTH in pixels")
    return int(height), int(width)


def _open(folder: Path, name: str) -> MaskSet:
    """Open one part of a data set.

    Raises:
        EvaluationError: Nothing says what the classes are.
    """
    found = open_masks(folder, classes=KNOWN.get(name))
    if found.classes is None:
        raise EvaluationError(f"{folder} needs a file classes.txt, here or one folder above, with the classes' names.")
    found.colours = list(COLOURS.get(name, found.colours or palette(len(found.classes))))
    return found


def measure(bench: Bench, jobs: Sequence[Job], file: Path) -> Iterator[Result]:
    """Do the jobs that the file has no rows for, append each result to it, and return it."""
    for job in jobs:
        subject, known = bench.subject(job), results.read(file) if file.exists() else []
        if any(_same(row, subject, job, bench) for row in known):
            continue
        model = finetuned(bench, subject, job)
        said = model.predict(bench.test.images, batch_size=bench.options.batch_size)
        figures = overlap(said, bench.test).compute()
        if bench.options.picture and job.seed == bench.options.seeds[0]:
            part = f"mean IoU {100 * figures['miou']:.1f} % of {len(said)} images of {bench.options.test}"
            picture(said, bench.test, bench.options.picture, job, f"{job.head} on {subject.name}: {part}")
        for metric in METRICS:
            result = Result(
                model=subject.name, protocol=PREFIX + job.head, data=bench.data, metric=metric,
                value=round(figures[metric], 4), seed=job.seed, n_train=len(bench.train), n_test=len(bench.test),
                sha256=subject.sha256, settings=bench.settings(job),
                commit=commit(results.PACKAGED.parent, ignore=results.PACKAGED.name),
                date=datetime.now(UTC).date().isoformat(),
            )  # fmt: skip
            results.append(result, file)
            yield result


def _same(row: Result, subject: Subject, job: Job, bench: Bench) -> bool:
    """Whether a row answers a job: whatever commit it is of."""
    return (
        row.key == (subject.name, PREFIX + job.head, bench.data, METRICS[-1], job.seed)
        and (row.n_train, row.n_test, row.sha256) == (len(bench.train), len(bench.test), subject.sha256)
        and row.settings == bench.settings(job)
    )


def finetuned(bench: Bench, subject: Subject, job: Job) -> Segmenter:
    """Fine-tune on all training images, for all steps."""
    assert isinstance(subject.encode, Encoder)
    options = bench.options
    model = segmenter(
        subject.encode, classes=bench.train.classes, colours=bench.train.colours, head=job.head,
        output_stride=bench.stride(job), image_size=options.image_size, seed=job.seed,
    )  # fmt: skip
    with TemporaryDirectory() as folder:
        finetune(
            model, bench.train, out=folder, steps=options.steps, batch_size=options.batch_size,
            lr=bench.lr(job), weight_decay=WEIGHT_DECAY, layer_decay=bench.layer_decay(job), val_fraction=0,
            seed=job.seed, bf16=options.bf16, num_workers=0, device=options.device, progress=sys.stderr.isatty(),
        )  # fmt: skip
    return model


def overlap(said: Segmentations, truth: MaskSet) -> Overlap:
    """Count the pixels of all images, in their own size.

    Raises:
        EvaluationError: An image could not be read: a number on part of a data set is another number.
    """
    for name, reason in said.skipped:
        raise EvaluationError(f"{name} cannot be read: {reason}. Repair or remove it.")
    meter = Overlap(said.classes)
    for i in range(len(truth)):
        prediction, label = (torch.from_numpy(mask.astype("int64"))[None] for mask in (said.masks[i], truth.mask(i)))
        meter.update(confusion(prediction, label, len(said.classes)), label)
    return meter


def picture(said: Segmentations, truth: MaskSet, path: Path, job: Job, title: str) -> None:
    """Draw some test images, their true classes and the predicted ones, as a PNG file."""
    cells: list[tuple[Image.Image, Mask | None]] = []
    captions: list[str] = []
    for i in range(0, len(truth), max(1, len(truth) // PICTURED)):
        if len(cells) < 3 * PICTURED:
            cells += [(truth.images[i], None), (truth.images[i], truth.mask(i)), (truth.images[i], said.masks[i])]
            captions += [truth.names[i], "ground truth", "prediction"]
    file = path.with_name(f"{path.stem}-{job.head}-{job.start}{path.suffix}")
    plots.overlay_sheet(cells, said.classes, said.colours, file, title, captions=captions)


def is_segmentation(row: Result) -> bool:
    """Whether a row of results.csv is from here."""
    return row.protocol.startswith(PREFIX)


def table(rows: Sequence[Result]) -> str:
    """Markdown: mean IoU of each head, a column for each start; mean ± standard deviation over seeds.

    Args:
        rows: Of results.csv, none replaced by a later one, of one data set.
    """
    found: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if row.metric == "miou":
            found.setdefault((row.protocol.removeprefix(PREFIX), row.model), []).append(row.value)
    models = list(dict.fromkeys(model for _, model in found))
    heads = list(dict.fromkeys(head for head, _ in found))
    lines = [f"| mean IoU | {' | '.join(f'`{model}`' for model in models)} |", f"| --- |{' ---: |' * len(models)}"]
    lines += [f"| {head} | {' | '.join(_cell(found.get((head, model), [])) for model in models)} |" for head in heads]
    return "\n".join(lines)


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "–"
    spread = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.1f} %{spread}"
