"""What embedding an image costs, from JPEG files: ours beside transformers' pipeline, alternating in one run.

    python -m sslzoo_evaluations speed embed     # about 10 minutes on two quiet cores

ResNet-18 with random weights in one folder for both, images of 500 x 375 pixels, as ImageNet's mostly are, at 224 px,
float32, the same batch size, two threads on two CPUs. Ours is the public command, `sslzoo embed`, with its defaults;
theirs is `pipeline("image-feature-extraction", pool=True)` on the list of files, with its defaults and, beside it, with
a worker process that reads images.

Each measurement is two processes: all images, and one batch of them. The difference is what the other images cost:
start-up and the loading of the model are in both and drop out. The features of both are compared: they must be equal.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image
from safetensors.numpy import load_file
from sklearn.datasets import load_sample_images

from sslzoo.encoder import create
from sslzoo.feature_files import read_features

from .measure import Cost, Spread, confined, machine, run_child
from .pretrain import copy_images

THREADS = 2
SIZE = 224  # pixels
GOAL = 1.3  # times as many images a second as the pipeline with its defaults
SAME = 1e-5  # largest difference of features, relative to the largest feature

OURS = "from sslzoo.cli import main; main()"
PIPELINE = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from transformers import pipeline
model, data, out, batch_size, workers = sys.argv[1:]
embed = pipeline("image-feature-extraction", model=model, device="cpu", pool=True, return_tensors=True)
files = sorted(map(str, Path(data).iterdir()))
features = torch.cat(embed(files, batch_size=int(batch_size), num_workers=int(workers)))
save_file({"features": features}, out)
"""


@dataclass(frozen=True)
class Contender:
    """One way to embed a folder.

    Attributes:
        name: For the table.
        workers: Processes beside the pipeline's; None for ours.
    """

    name: str
    workers: int | None

    def command(self, model: Path, data: Path, out: Path, batch_size: int) -> list[str]:
        """The program that embeds the images of a folder; `out` has no suffix yet."""
        if self.workers is None:
            files = [str(model), str(data), "-o", f"{out}.npz"]
            return [sys.executable, "-c", OURS, "embed", *files, "--batch-size", str(batch_size)]
        files = [str(model), str(data), f"{out}.safetensors"]
        return [sys.executable, "-c", PIPELINE, *files, str(batch_size), str(self.workers)]


CONTENDERS = (
    Contender("transformers' pipeline", 0),
    Contender("the same, one worker process", 1),
    Contender("sslzoo", None),
)


@dataclass(frozen=True)
class Job:
    """What is embedded.

    Attributes:
        model: Folder of the encoder.
        long: Folder of `images` + `batch_size` JPEG files.
        short: Folder of `batch_size` of them.
        images: How many more images the long run embeds.
        batch_size: Images a step.
    """

    model: Path
    long: Path
    short: Path
    images: int
    batch_size: int

    def cost(self, contender: Contender) -> tuple[Cost, np.ndarray]:
        """What the images cost one contender, and the features of all."""
        with TemporaryDirectory() as temporary:
            out = Path(temporary, "features")
            costs = [
                run_child(contender.command(self.model, data, out, self.batch_size), _threads())[0]
                for data in (self.short, self.long)
            ]
            return costs[1] - costs[0], _features(out)


def _features(out: Path) -> np.ndarray:
    file = out.with_suffix(".safetensors")
    return load_file(file)["features"] if file.is_file() else read_features(out.with_suffix(".npz")).X


def _threads() -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(THREADS), "MKL_NUM_THREADS": str(THREADS)}


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
    create("resnet18", seed=0, image_size=SIZE).save_pretrained(folder / "model")
    return Job(folder / "model", long, short, images, batch_size)


def table(images: int, costs: dict[str, list[Cost]]) -> str:
    """The figures; the last two columns are relative to the first contender."""
    lines = [f"{'':32}{'CPU ms / image':26}{'images / s':22}CPU time  images / s, relative"]
    base: tuple[float, float] | None = None
    for name, repeats in costs.items():
        cpu = Spread.of([1000 * cost.cpu / images for cost in repeats])
        speed = Spread.of([images / cost.wall for cost in repeats])
        base = base or (cpu.median, speed.median)
        relative = f"{cpu.median / base[0]:<10.2f}{speed.median / base[1]:.2f}"
        lines.append(f"{name:32}{cpu.show(2):26}{speed.show(1):22}{relative}")
    return "\n".join(lines)


def measure(job: Job, repeats: int) -> dict[str, list[Cost]]:
    """What each contender took, by name; they take turns, so that a busy minute hits all of them.

    Raises:
        ValueError: Their features differ: they did not do the same job.
    """
    costs: dict[str, list[Cost]] = {contender.name: [] for contender in CONTENDERS}
    expected: np.ndarray | None = None
    for repeat in range(repeats):
        for contender in CONTENDERS:
            cost, features = job.cost(contender)
            expected = features if expected is None else expected
            difference = float(np.abs(features - expected).max() / np.abs(expected).max())
            if features.shape != expected.shape or difference > SAME:
                raise ValueError(f"{contender.name} gives other features, by {difference:.2g} of the largest.")
            costs[contender.name].append(cost)
            done = f"{repeat + 1} of {repeats}, {contender.name}"
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
        print("\n" + table(job.images, measure(job, args.repeats)))
    print(f"\ngoal: sslzoo at {GOAL} times the images a second of the pipeline, or more")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
