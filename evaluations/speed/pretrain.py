"""What pretraining costs an image, end to end from image files: ours beside lightly's own loop, alternating in one run.

    python -m sslzoo_evaluations speed pretrain     # pip install '.[bench]'; about 20 minutes on two quiet cores

The same job for each: ResNet-18 with its usual stem, 32 px, batch 256, the papers' augmentations, heads of the same
sizes, SGD, two threads on two CPUs. Ours is the public command, lightly's is `lightly_loop.py`; the goal is set against
its float32 form, which is the documented one.

Each measurement is two processes: an epoch of all images and an epoch of one batch of them. The difference is what the
other images cost: reading and decoding the files, augmenting, stepping. Start-up, the first step's warm-up, the writing
of checkpoint and encoder are in both and drop out. One epoch is the case least good for ours, which decodes each file
once a run; the other does so once an epoch. Looking at the features after each epoch is off: lightly has no such thing.

The share of augmentation comes from a run of ours under cProfile with the CPU clock, as a difference in the same way.
"""

import argparse
import os
import pstats
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from sslzoo.data import open_images

from .measure import Cost, Spread, confined, machine, run_child, thread_limits

THREADS = 2
SETTINGS = ("optimizer=sgd", "lr=0.06", "warmup_epochs=0", "monitor_every=1000000")
HEADS = {
    "byol": ("hidden_dim=1024", "dim=256"),
    "simsiam": ("dim=2048", "predictor_dim=512", "projector_layers=3"),
}
# CPU time of all threads; a module is run as `python -m` does, so that nothing of the training code is imported here
PROFILED = """
import cProfile, runpy, sys, time
profile = cProfile.Profile(time.process_time, builtins=False)
try:
    profile.runcall(runpy.run_module, "sslzoo_training", run_name="__main__", alter_sys=True)
finally:
    profile.dump_stats({path!r})
"""


@dataclass(frozen=True)
class Contender:
    """One way to do the job.

    Attributes:
        name: For the table.
        package: "sslzoo" or "lightly".
        bf16: bf16 autocast, instead of float32.
    """

    name: str
    package: str
    bf16: bool

    def command(self, method: str, folder: Path, out: Path, batch_size: int) -> list[str]:
        """The program that trains one epoch on the folder."""
        if self.package == "lightly":
            loop = [sys.executable, "-m", f"{__package__}.lightly_loop", method, "--data", str(folder)]
            return [*loop, "--batch-size", str(batch_size), "--workers", str(THREADS), *["--bf16"] * self.bf16]
        precision = f"precision={'bf16' if self.bf16 else 'no'}"
        return [sys.executable, "-m", "sslzoo_training", *_arguments(method, folder, out, batch_size), precision]


CONTENDERS = (
    Contender("lightly, float32", "lightly", bf16=False),
    Contender("lightly, bf16, channels_last", "lightly", bf16=True),
    Contender("sslzoo, float32", "sslzoo", bf16=False),
    Contender("sslzoo, bf16 (its default)", "sslzoo", bf16=True),
)


def _arguments(method: str, folder: Path, out: Path, batch_size: int) -> list[str]:
    where = ["--data", str(folder), "--out", str(out), "--device", "cpu"]
    job = ["--arch", "resnet18", "--image-size", "32", "--batch-size", str(batch_size), "--epochs", "1"]
    return ["pretrain", method, *where, *job, *SETTINGS, *HEADS[method]]


@dataclass(frozen=True)
class Job:
    """The images of one benchmark.

    Attributes:
        long: Folder of images.
        short: Folder of some of them.
        images: How many more images the long run trains on.
        batch_size: Images a step.
    """

    long: Path
    short: Path
    images: int
    batch_size: int

    def cost(self, contender: Contender, method: str) -> Cost:
        """What the images cost one contender."""
        costs = []
        for folder in (self.long, self.short):
            with TemporaryDirectory() as temporary:
                command = contender.command(method, folder, Path(temporary, "run"), self.batch_size)
                costs.append(run_child(command, thread_limits(THREADS))[0])
        return costs[0] - costs[1]

    def views_share(self, method: str) -> float:
        """The views' part in the CPU time of ours, bf16, in [0, 1]: of all that happens from batch to batch."""
        long, short = (self._profile(method, folder) for folder in (self.long, self.short))
        return (long[0] - short[0]) / (long[1] - short[1])

    def _profile(self, method: str, folder: Path) -> tuple[float, float]:
        """CPU seconds in the making of views, and in whole steps."""
        with TemporaryDirectory() as temporary:
            path, out = Path(temporary, "profile"), Path(temporary, "run")
            program = [sys.executable, "-c", PROFILED.format(path=str(path))]
            run_child([*program, *_arguments(method, folder, out, self.batch_size)], thread_limits(THREADS))
            stats = pstats.Stats(str(path))
        return seconds_in(stats, "loop.py", "_views"), seconds_in(stats, "loop.py", "_step")


def seconds_in(stats: pstats.Stats, file: str, function: str) -> float:
    """Seconds in a function and all it calls.

    Raises:
        LookupError: It was not called: renamed, perhaps.
    """
    return _found(stats, file, function)[1]


def calls_of(stats: pstats.Stats, file: str, function: str) -> int:
    """How often a function was called.

    Raises:
        LookupError: Never: renamed, perhaps.
    """
    return _found(stats, file, function)[0]


def _found(stats: pstats.Stats, file: str, function: str) -> tuple[int, float]:
    calls: dict[tuple[str, int, str], tuple[int, int, float, float, object]] = stats.stats  # type: ignore[attr-defined]
    for (path, _, name), (_, count, _, cumulative, _) in calls.items():
        if name == function and path.endswith(os.sep + file):
            return count, cumulative
    raise LookupError(f"the profile has no {function} of {file}; was it renamed? This benchmark looks for it by name.")


def make_images(folder: Path, count: int) -> None:
    """Write `count` PNG files of 32 x 32 pixels, random cuts of scikit-learn's two photographs."""
    photographs = [Image.fromarray(photograph) for photograph in load_sample_images().images]
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for i in range(count):
        photograph = photographs[i % len(photographs)]
        side = int(random.integers(64, 256))
        left, top = (int(random.integers(0, length - side + 1)) for length in photograph.size)
        cut = photograph.resize((32, 32), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
        cut.save(folder / f"{i:06d}.png")


def copy_images(source: Path, folder: Path, count: int) -> None:
    """Copy `count` image files, evenly chosen among those of `source` and its sub-folders.

    Raises:
        ValueError: There are not as many.
    """
    names = open_images(source).names
    if len(names) < count:
        raise ValueError(f"{source} has {len(names)} images, {count} are needed. Use fewer --steps or more images.")
    folder.mkdir(parents=True)
    for i, position in enumerate(np.linspace(0, len(names) - 1, count).astype(int)):
        name = names[position]
        shutil.copyfile(source / name, folder / f"{i:06d}{Path(name).suffix}")


def make_job(data: Path | None, folder: Path, *, steps: int, batch_size: int, base: int = 1) -> Job:
    """Lay out the images of a benchmark in `folder`: of `base` steps, and of `steps` more."""
    long, short = folder / "long", folder / "short"
    if data is None:
        make_images(long, (base + steps) * batch_size)
    else:
        copy_images(data, long, (base + steps) * batch_size)
    copy_images(long, short, base * batch_size)
    return Job(long, short, steps * batch_size, batch_size)


def table(method: str, images: int, costs: dict[str, list[Cost]]) -> str:
    """The figures of one method; the last column is the CPU time as a part of that of the first contender."""
    lines = [f"{method:30}{'CPU ms / image':26}{'images / s':22}CPU time, relative"]
    base = 0.0
    for name, repeats in costs.items():
        cpu = Spread.of([1000 * cost.cpu / images for cost in repeats])
        speed = Spread.of([images / cost.wall for cost in repeats])
        base = base or cpu.median
        lines.append(f"{name:30}{cpu.show(2):26}{speed.show(0):22}{cpu.median / base:.2f}")
    return "\n".join(lines)


def measure(job: Job, method: str, repeats: int) -> dict[str, list[Cost]]:
    """What each contender took, by name; they take turns, so that a busy minute hits all of them."""
    costs: dict[str, list[Cost]] = {contender.name: [] for contender in CONTENDERS}
    for repeat in range(repeats):
        for contender in CONTENDERS:
            cost = job.cost(contender, method)
            costs[contender.name].append(cost)
            done = f"{method}, {repeat + 1} of {repeats}, {contender.name}"
            print(f"{done}: {1000 * cost.cpu / job.images:.2f} ms CPU an image", file=sys.stderr)
    return costs


def main(argv: Sequence[str]) -> int:
    """Measure and print a table for each method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of images; default: cuts of scikit-learn's photographs")
    parser.add_argument("--methods", nargs="+", choices=list(HEADS), default=list(HEADS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="steps that are counted")
    parser.add_argument("--batch-size", type=int, default=256)
    args = parser.parse_args(argv)
    try:
        packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "timm", "lightly"))
    except PackageNotFoundError as error:
        print(f"error: {error.name} is not installed: pip install 'sslzoo[bench]'", file=sys.stderr)
        return 1
    print(f"{machine()}; {packages}")
    print(f"resnet18 at 32 px, batch {args.batch_size}, {THREADS} threads, {args.steps} steps; "
          f"median of {args.repeats} (lowest–highest)")  # fmt: skip
    with TemporaryDirectory() as temporary, confined(THREADS):
        job = make_job(args.data, Path(temporary), steps=args.steps, batch_size=args.batch_size)
        for method in args.methods:
            print("\n" + table(method, job.images, measure(job, method, args.repeats)), flush=True)
            share = Spread.of([100 * job.views_share(method) for _ in range(args.repeats)])
            print(f"augmentation in sslzoo, bf16: {share.show(0)} % of the CPU time of a step (goal: under 20 %)")
    print("\ngoal: sslzoo, bf16 at 0.50 of lightly, float32 or less")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
