"""What embedding and classifying an image cost, from JPEG files: ours beside transformers' pipeline, alternating.

    python -m sslzoo_evaluations speed embed     # about 20 minutes on two quiet cores

ResNet-18 with random weights in one folder for both, images of 500 x 375 pixels, as ImageNet's mostly are, at 224 px,
float32, the same batch size, two threads on two CPUs. Ours is the public command, `sslzoo embed` or `sslzoo predict`;
theirs is `pipeline("image-feature-extraction", pool=True)` or `pipeline("image-classification")` on the list of files,
with its defaults and, beside it, with a worker process that reads images.

Each measurement is two processes: all images, and one batch of them. The difference is what the other images cost:
start-up and the loading of the model are in both and drop out. What all give is compared: it must be equal.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import load_file
from sklearn.datasets import load_sample_images
from torch import nn

from sslzoo.encoder import create
from sslzoo.feature_files import read_features
from sslzoo.heads.classifier import classifier

from .measure import Cost, Spread, confined, machine, run_child, thread_limits
from .pretrain import copy_images

Numbers = np.ndarray[Any, np.dtype[Any]]

THREADS = 2
SIZE = 224  # pixels
GOAL = 1.3  # times as many images a second as the pipeline with its defaults
CLASSES = 10
OURS = "from sslzoo.cli import main; main()"
THEIRS = f"""
import json, sys
from pathlib import Path
from transformers import pipeline
task, model, data, out, batch_size, workers = sys.argv[1:]
files = sorted(map(str, Path(data).iterdir()))
how = dict(batch_size=int(batch_size), num_workers=int(workers))
if task == "embed":
    import torch
    from safetensors.torch import save_file
    run = pipeline("image-feature-extraction", model=model, device="cpu", pool=True, return_tensors=True)
    save_file(dict(features=torch.cat(run(files, **how))), out)
else:
    run = pipeline("image-classification", model=model, device="cpu", top_k={CLASSES})
    Path(out).write_text(json.dumps(run(files, **how)))
"""


@dataclass(frozen=True)
class Task:
    """What is done to each image.

    Attributes:
        name: Our command.
        tolerance: Largest difference between what two contenders give, relative to the largest value.
        ours: Suffix of the file that our command writes.
        theirs: Suffix of theirs.
    """

    name: str
    tolerance: float
    ours: str
    theirs: str

    def read(self, file: Path) -> Numbers:
        """Read what a contender wrote: (N, D) features, or (N, K) probabilities."""
        if file.suffix == ".npz":
            return read_features(file).X
        if file.suffix == ".safetensors":
            return load_file(file)["features"]
        rows: list[Any] = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(rows[0], dict):  # ours
            return np.array([[row["probabilities"][str(k)] for k in range(CLASSES)] for row in rows])
        scores = [{entry["label"]: entry["score"] for entry in row} for row in rows]
        return np.array([[row[str(k)] for k in range(CLASSES)] for row in scores])


TASKS = (
    Task("embed", 1e-5, ".npz", ".safetensors"),
    Task("predict", 1e-3, ".json", ".theirs.json"),
)  # ours are rounded


@dataclass(frozen=True)
class Contender:
    """One way to do it.

    Attributes:
        name: For the table.
        workers: Processes beside the pipeline's; None for ours.
    """

    name: str
    workers: int | None

    def command(self, task: Task, model: Path, data: Path, out: Path, batch_size: int) -> list[str]:
        """The program that goes through the images of a folder."""
        if self.workers is None:
            files = [str(model), str(data), "-o", str(out)]
            return [sys.executable, "-c", OURS, task.name, *files, "--batch-size", str(batch_size)]
        files = [str(model), str(data), str(out)]
        return [sys.executable, "-c", THEIRS, task.name, *files, str(batch_size), str(self.workers)]


CONTENDERS = (
    Contender("transformers' pipeline", 0),
    Contender("the same, one worker process", 1),
    Contender("sslzoo", None),
)


@dataclass(frozen=True)
class Job:
    """The images of the benchmark, and the models.

    Attributes:
        models: Folder of each task's model.
        long: Folder of `images` + `batch_size` JPEG files.
        short: Folder of `batch_size` of them.
        images: How many more images the long run has.
        batch_size: Images a step.
    """

    models: dict[str, Path]
    long: Path
    short: Path
    images: int
    batch_size: int

    def cost(self, task: Task, contender: Contender) -> tuple[Cost, Numbers]:
        """What the images cost one contender, and what it gave for all."""
        with TemporaryDirectory() as temporary:
            out = Path(temporary, f"out{task.ours if contender.workers is None else task.theirs}")
            costs = []
            for data in (self.short, self.long):
                command = contender.command(task, self.models[task.name], data, out, self.batch_size)
                costs.append(run_child(command, thread_limits(THREADS))[0])
            return costs[1] - costs[0], task.read(out)


def make_photographs(folder: Path, count: int) -> None:
    """Write `count` JPEG files of 500 x 375 pixels, random cuts of scikit-learn's two photographs."""
    photographs = [Image.fromarray(photograph) for photograph in load_sample_images().images]
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for i in range(count):
        photograph = photographs[i % len(photographs)]
        width = int(random.integers(320, 500))
        height = width * 3 // 4
        left, top = int(random.integers(0, 640 - width)), int(random.integers(0, 427 - height))
        cut = photograph.resize((500, 375), Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
        cut.save(folder / f"{i:06d}.jpg", quality=90)


def make_job(data: Path | None, folder: Path, *, images: int, batch_size: int) -> Job:
    """Lay out model and images in `folder`."""
    long, short = folder / "long", folder / "short"
    if data is None:
        make_photographs(long, images + batch_size)
    else:
        copy_images(data, long, images + batch_size)
    copy_images(long, short, batch_size)
    models = {task.name: folder / task.name for task in TASKS}
    encoder = create("resnet18", seed=0, image_size=SIZE)
    encoder.save_pretrained(models["embed"])
    model = classifier(encoder, classes=[str(k) for k in range(CLASSES)])
    nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(models["predict"])
    return Job(models, long, short, images, batch_size)


def table(task: str, images: int, costs: dict[str, list[Cost]]) -> str:
    """The figures of one task; the last two columns are relative to the first contender."""
    lines = [f"{task:32}{'CPU ms / image':26}{'images / s':22}CPU time  images / s, relative"]
    base: tuple[float, float] | None = None
    for name, repeats in costs.items():
        cpu = Spread.of([1000 * cost.cpu / images for cost in repeats])
        speed = Spread.of([images / cost.wall for cost in repeats])
        base = base or (cpu.median, speed.median)
        relative = f"{cpu.median / base[0]:<10.2f}{speed.median / base[1]:.2f}"
        lines.append(f"{name:32}{cpu.show(2):26}{speed.show(1):22}{relative}")
    return "\n".join(lines)


def measure(job: Job, task: Task, repeats: int) -> dict[str, list[Cost]]:
    """What each contender took, by name; they take turns, so that a busy minute hits all of them.

    Raises:
        ValueError: They give different numbers: they did not do the same job.
    """
    costs: dict[str, list[Cost]] = {contender.name: [] for contender in CONTENDERS}
    expected: Numbers | None = None
    for repeat in range(repeats):
        for contender in CONTENDERS:
            cost, found = job.cost(task, contender)
            expected = found if expected is None else expected
            difference = float(np.abs(found - expected).max() / np.abs(expected).max())
            if difference > task.tolerance:
                raise ValueError(
                    f"{task.name}: {contender.name} gives other numbers, by {difference:.2g} of the largest."
                )
            costs[contender.name].append(cost)
            done = f"{task.name}, {repeat + 1} of {repeats}, {contender.name}"
            print(f"{done}: {1000 * cost.cpu / job.images:.2f} ms CPU an image", file=sys.stderr)
    return costs


def main(argv: Sequence[str]) -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of JPEG files; default: cuts of scikit-learn's photographs")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images", type=int, default=512, help="images that are counted")
    parser.add_argument("--batch-size", type=int, default=32)
    args = parser.parse_args(argv)
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "timm", "transformers", "pillow"))
    print(f"{machine()}; {packages}")
    print(f"resnet18 at {SIZE} px, batch {args.batch_size}, {THREADS} threads, {args.images} images; "
          f"median of {args.repeats} (lowest–highest)")  # fmt: skip
    with TemporaryDirectory() as temporary, confined(THREADS):
        job = make_job(args.data, Path(temporary), images=args.images, batch_size=args.batch_size)
        for task in TASKS:
            print("\n" + table(task.name, job.images, measure(job, task, args.repeats)), flush=True)
    print(f"\ngoal: sslzoo at {GOAL} times the images a second of the pipeline, or more")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
