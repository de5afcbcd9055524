"""What each method's step costs beside its bare model step: all that is not forward, backward and optimizer.

    python -m sslzoo_evaluations speed methods --data cifar10/train     # an hour, on one core

End to end is everything from batch to batch: images from the store, views, labels by clustering where a method makes
them, logging. Bare is the same step without all that, as if it had been prepared. Both come from one run under
cProfile with the CPU clock, as a run of some steps an epoch less one of half as many: start-up, warm-up, what a
labelling costs for any number of images, checkpoints and looks at the features drop out. One thread, as the CPU recipes
were run: the CPU clock also counts a thread that waits for another. A run is one epoch on few images; of methods that
label the data set it is all epochs of the recipe, so that labelling has the part that it has in training.

What labelling adds is told beside the ratio. It depends on the images: give those that the recipe is for. Without, they
are cuts of two photographs, of which a network learns so little in a few steps that SeLa's labels take three times the
rounds that they take on CIFAR-10.

The goal is a ratio of at most 1.25.
"""

import argparse
import pstats
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from .measure import Spread, confined, machine, run_child, thread_limits
from .pretrain import PROFILED, Job, calls_of, make_job, seconds_in

GOAL = 1.25
THREADS = 1
# (file, function) of the profile: what is not of the loop, and what a bare step has not
OUTSIDE = (("loop.py", "save"), ("watch.py", "look"))
LABELS = ("loop.py", "_prepare")
PREPARED = (LABELS, ("loop.py", "_views"), ("source.py", "loader"))


@dataclass(frozen=True)
class Step:
    """CPU seconds of some steps.

    Attributes:
        whole: End to end.
        bare: Forward, backward, optimizer.
        labels: The labelling of the data set, a part of `whole`.
        steps: How many.
    """

    whole: float
    bare: float
    labels: float
    steps: int

    @classmethod
    def of(cls, stats: pstats.Stats) -> "Step":
        """The steps of one profiled run."""
        whole = seconds_in(stats, "loop.py", "train") - sum(_if_called(stats, *what) for what in OUTSIDE)
        bare = seconds_in(stats, "loop.py", "_step") - sum(seconds_in(stats, *what) for what in PREPARED)
        return cls(whole, bare, seconds_in(stats, *LABELS), calls_of(stats, "loop.py", "_step"))

    def __sub__(self, other: "Step") -> "Step":
        return Step(
            self.whole - other.whole, self.bare - other.bare, self.labels - other.labels, self.steps - other.steps
        )


def _if_called(stats: pstats.Stats, file: str, function: str) -> float:
    try:
        return seconds_in(stats, file, function)
    except LookupError:
        return 0.0


def list_methods() -> list[str]:
    """All methods, without an import of the training code."""
    return sorted(path.stem for path in _folder().glob("*.py") if path.stem != "__init__")


def labels_images(method: str) -> bool:
    """Whether a method labels the data set now and then: it has a `prepare` of its own."""
    return "    def prepare(" in (_folder() / f"{method}.py").read_text(encoding="utf-8")


def _folder() -> Path:
    spec = find_spec("sslzoo_training")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations)), "methods")


def profile(method: str, folder: Path, recipe: str, batch_size: int) -> Step:
    """A run of a method's recipe on a folder: all epochs if it labels the images, else one, as all are alike."""
    with TemporaryDirectory() as temporary:
        path, out = Path(temporary, "profile"), Path(temporary, "run")
        words = ["pretrain", method, "--data", str(folder), "--out", str(out), "--device", "cpu", "--recipe", recipe]
        words += ["--batch-size", str(batch_size), "monitor_every=1000000"]
        if not labels_images(method):
            words += ["--epochs", "1"]
        run_child([sys.executable, "-c", PROFILED.format(path=str(path)), *words], thread_limits(THREADS))
        return Step.of(pstats.Stats(str(path)))


@dataclass(frozen=True)
class Figures:
    """One measurement of a method.

    Attributes:
        bare: CPU milliseconds an image.
        ratio: End to end beside bare.
        labels: The labelling beside bare.
    """

    bare: float
    ratio: float
    labels: float


def measure(method: str, job: Job, recipe: str) -> Figures:
    """A long run less a short one."""
    long, short = (profile(method, folder, recipe, job.batch_size) for folder in (job.long, job.short))
    step = long - short
    return Figures(1000 * step.bare / (step.steps * job.batch_size), step.whole / step.bare, step.labels / step.bare)


def row(method: str, figures: Sequence[Figures]) -> str:
    """One line of the table."""
    bare, ratio, labels = (Spread.of([getattr(f, name) for f in figures]) for name in ("bare", "ratio", "labels"))
    missed = "" if ratio.median <= GOAL else "  MISSED"
    return f"{method:25}{bare.show(2):26}{ratio.show(2):26}{labels.median:.2f}{missed}"


def main(argv: Sequence[str]) -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of images; default: cuts of scikit-learn's photographs")
    parser.add_argument("--methods", nargs="+", choices=list_methods(), default=list_methods())
    parser.add_argument("--recipe", default="cifar10_cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=32, help="steps that are counted of each epoch")
    parser.add_argument("--batch-size", type=int, default=128)
    args = parser.parse_args(argv)
    print(f"{machine()}\n{args.recipe}, batch {args.batch_size}, {THREADS} thread, {args.steps} steps an epoch; "
          f"median of {args.repeats} (lowest–highest)")  # fmt: skip
    print(f"{'method':25}{'bare, CPU ms / image':26}{'end to end / bare':26}labelling / bare; goal: {GOAL}")
    with TemporaryDirectory() as temporary, confined(THREADS):
        job = make_job(args.data, Path(temporary), steps=args.steps, batch_size=args.batch_size, base=args.steps)
        for method in args.methods:
            print(row(method, [measure(method, job, args.recipe) for _ in range(args.repeats)]), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
