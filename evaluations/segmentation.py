"""Segmentation: fine-tune heads on an encoder with masks, test mean IoU; --scratch: the same from random weights too.

For each head and seed one fine-tuning on train/ with a fixed number of steps, whose last one is tested on test/: masks
are predicted in the images' own size and compared with the true ones as they are. Learning rates were chosen before
that, for encoder and scratch apart, on val/ of CamVid; nothing is chosen on test images.

python -m sslzoo_evaluations segmentation byol-resnet18quarter-cifar10 --data camvid --scratch --output-stride 16 --bf16

Each number is appended to results.csv as soon as there is one, and numbers that are there are not measured again: the
same command goes on after a kill, and several with other --seeds may run side by side.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from sslzoo import plots
from sslzoo.card import data_title
from sslzoo.class_table import ClassTable, palette
from sslzoo.encoder import Encoder
from sslzoo.heads import decoders
from sslzoo.heads.segmentations import Segmentations
from sslzoo.heads.segmenter import Overlap, Segmenter, confusion, segmenter
from sslzoo.masks import Mask, MaskSet, open_masks

from . import results, transfer
from .results import Result, cell
from .subjects import EvaluationError, Subject
from .transfer import LAYER_DECAY, PRETRAINED, SCRATCH, WEIGHT_DECAY, Job, Trial

HEADS = ("fcn8s", "fcn", "deeplabv3", "deeplabv3plus")
STEPS = 300
BATCH = 8
IMAGE_SIZE = (192, 256)
LR = {PRETRAINED: 3e-3, SCRATCH: 1e-2}  # of 3e-3 and 1e-2, by fcn8s and deeplabv3 in 150 steps; so was the layer decay
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


@dataclass(frozen=True, eq=False)
class Bench:
    """What all jobs share: the encoder's name, the data, and the budget."""

    model: str
    data: str
    train: MaskSet
    test: MaskSet
    options: argparse.Namespace

    def trial(self, job: Job) -> Trial:
        """What a job trains, and what its results are known by."""
        subject = transfer.starting_point(self.model, job.start, job.seed, self.train.images)
        counts = len(self.train), len(self.test)
        return Trial(subject, PREFIX + job.head, self.data, job.seed, *counts, self.settings(job))

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
    name = results.data_name(options.data)
    train, test = (_open(options.data / part, name) for part in ("train", options.test))
    bench = Bench(options.model, name, train, test, options)
    for result in measure(bench, transfer.jobs(options), options.results):
        print(transfer.show(result), flush=True)
    print(table([row for row in results.latest(results.read(options.results)) if row.data == name]))
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    data = "folder with train/ and test/, each with images/ and masks/"
    parser = transfer.head_parser("segmentation", decoders.HEADS, HEADS, data=data, steps=STEPS, batch_size=BATCH)
    parser.add_argument("--test", default="test", help="the part that is tested on; val to choose settings")
    parser.add_argument("--image-size", type=_size, default=IMAGE_SIZE, metavar="HEIGHTxWIDTH")
    parser.add_argument("--output-stride", type=int, help="of heads that take it; default: the head's")
    parser.add_argument("--lr", type=float, help="default: see the docstring")
    parser.add_argument("--layer-decay", type=float, help="default: see the docstring")
    parser.add_argument("--bf16", action="store_true")
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
        trial = bench.trial(job)
        yield from transfer.once(trial, METRICS, partial(_figures, bench, job, trial.subject), file)


def _figures(bench: Bench, job: Job, subject: Subject) -> tuple[dict[str, float], str]:
    """Fine-tune and test; draw pictures for the first seed."""
    options = bench.options
    said = finetuned(bench, subject, job).predict(bench.test.images, batch_size=options.batch_size)
    figures = overlap(said, bench.test).compute()
    if options.picture and job.seed == options.seeds[0]:
        part = f"mean IoU {100 * figures['miou']:.1f} % of {len(said)} images of {options.test}"
        picture(said, bench.test, options.picture, job, f"{job.head} on {subject.name}: {part}")
    return figures, ""


def finetuned(bench: Bench, subject: Subject, job: Job) -> Segmenter:
    """Fine-tune on all training images, for all steps."""
    assert isinstance(subject.encode, Encoder)
    options = bench.options
    model = segmenter(
        subject.encode, classes=bench.train.classes, colours=bench.train.colours, head=job.head,
        output_stride=bench.stride(job), image_size=options.image_size, seed=job.seed,
    )  # fmt: skip
    transfer.finetune_all(
        model, bench.train, steps=options.steps, batch_size=options.batch_size, lr=bench.lr(job),
        layer_decay=bench.layer_decay(job), seed=job.seed, bf16=options.bf16, device=options.device,
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


def table(rows: Sequence[Result]) -> str:
    """Markdown, a table for each data set: mean IoU of each head, a column for each start; mean ± sd over seeds.

    Args:
        rows: Of results.csv, none replaced by a later one.
    """
    own = [row for row in rows if row.protocol.startswith(PREFIX) and row.metric == "miou"]
    return "\n\n".join(_table(data, part) for data, part in results.by_data(own).items())


def _table(data: str, rows: Sequence[Result]) -> str:
    found: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        found.setdefault((row.protocol.removeprefix(PREFIX), row.model), []).append(row.value)
    heads, models = (list(dict.fromkeys(column)) for column in zip(*found, strict=True))
    header = " | ".join(f"`{model}`" for model in models)
    lines = [f"| mean IoU on {data_title(data)}, test | {header} |", f"| --- |{' ---: |' * len(models)}"]
    lines += [f"| {head} | {' | '.join(cell(found.get((head, model), [])) for model in models)} |" for head in heads]
    return "\n".join(lines)
