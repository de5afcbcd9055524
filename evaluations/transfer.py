"""What the evaluations that train networks share: where a network starts, and going on after a kill."""

import argparse
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from sslzoo.data import ImageSet
from sslzoo.encoder import Encoder
from sslzoo.finetuning import finetune

from . import results
from .results import Result
from .subjects import EvaluationError, Subject, open_subject

PRETRAINED, SCRATCH = "pretrained", "scratch"
SEEDS = (0, 1, 2)
LAYER_DECAY = {PRETRAINED: 0.8, SCRATCH: 1.0}  # random layers have nothing to keep
WEIGHT_DECAY = 0.05


def starting_point(model: str, start: str, seed: int, images: ImageSet) -> Subject:
    """Find the encoder to fine-tune.

    Args:
        model: Zoo id or alias, or the folder of a run.
        start: PRETRAINED, or SCRATCH: the same network with random weights.
        seed: Of random weights.
        images: The training images.

    Raises:
        EvaluationError: It has no weights, as raw pixels have none.
        sslzoo.zoo.UnknownModelError: No such model.
    """
    subject = open_subject(model, seed, images)
    if not isinstance(subject.encode, Encoder):
        raise EvaluationError(f"{model} has no weights to fine-tune; a zoo id or the folder of a run has.")
    if start == PRETRAINED:
        return subject
    return open_subject(f"random:{subject.encode.arch}@{subject.encode.input_size[1]}", seed, images)


@dataclass(frozen=True)
class Job:
    """One head to fine-tune.

    Attributes:
        head: Its name.
        start: PRETRAINED or SCRATCH.
        seed: Of everything random.
    """

    head: str
    start: str
    seed: int


@dataclass(frozen=True)
class Trial:
    """One training to do, and what its results are known by.

    Attributes:
        subject: What it starts from.
        protocol: As results.csv has it.
        data: Name of the data set.
        seed: Of everything random.
        n_train: Training images.
        n_test: Test images.
        settings: What is known of them before it runs.
    """

    subject: Subject
    protocol: str
    data: str
    seed: int
    n_train: int
    n_test: int
    settings: str

    def is_answered_by(self, row: Result, metric: str) -> bool:
        """Whether a row is this number: whatever commit it is of."""
        return (
            row.key == (self.subject.name, self.protocol, self.data, metric, self.seed)
            and (row.n_train, row.n_test, row.sha256) == (self.n_train, self.n_test, self.subject.sha256)
            and f"{row.settings} ".startswith(f"{self.settings} ")
        )


def once(
    trial: Trial, metrics: Sequence[str], measure: Callable[[], tuple[Mapping[str, float], str]], file: Path
) -> Iterator[Result]:
    """Do a trial unless the file has its rows; append one for each metric, and return it.

    Args:
        trial: What to do.
        metrics: What it gives.
        measure: Does it. Returns the value of each metric, and the settings that it chose on training data, or "".
        file: CSV of results.
    """
    known = results.read(file) if file.exists() else []
    if all(any(trial.is_answered_by(row, metric) for row in known) for metric in metrics):
        return
    values, chosen = measure()
    for metric in metrics:
        result = results.new(
            model=trial.subject.name, protocol=trial.protocol, data=trial.data, metric=metric, value=values[metric],
            seed=trial.seed, n_train=trial.n_train, n_test=trial.n_test, sha256=trial.subject.sha256,
            settings=f"{trial.settings} {chosen}".rstrip(),
        )  # fmt: skip
        results.append(result, file)
        yield result


def finetune_all(model: Any, images: Any, **settings: Any) -> None:
    """Fine-tune in place on all of the images, for all steps: nothing is held out, and nothing is kept but the model.

    Args:
        model: Of any task.
        images: Labelled, as `sslzoo.finetune` takes them.
        **settings: Of `sslzoo.finetune`.
    """
    with TemporaryDirectory() as folder:
        finetune(
            model, images, out=folder, weight_decay=WEIGHT_DECAY, val_fraction=0, num_workers=0,
            progress=sys.stderr.isatty(), **settings,
        )  # fmt: skip


def show(result: Result) -> str:
    """A line of the progress."""
    return f"{result.model}  {result.protocol}  seed {result.seed}: {result.metric} {result.value:.4f}"


def parser(name: str, *, data: str, steps: int, batch_size: int) -> argparse.ArgumentParser:
    """The options that all have.

    Args:
        name: Of the evaluation.
        data: What its folder of data has to hold.
        steps: Default.
        batch_size: Default.
    """
    options = argparse.ArgumentParser(prog=f"python -m sslzoo_evaluations {name}")
    options.add_argument("model", help="zoo id, or folder of a run")
    options.add_argument("--data", type=Path, required=True, help=data)
    options.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    options.add_argument("--steps", type=int, default=steps, help="of every fine-tuning")
    options.add_argument("--batch-size", type=int, default=batch_size)
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--threads", type=int, default=1, help="of torch, on a CPU")
    options.add_argument("--results", type=Path, default=results.default_file(), help="CSV to append to")
    return options


def head_parser(name: str, heads: Collection[str], default: Sequence[str], **common: Any) -> argparse.ArgumentParser:
    """The options of those that put heads on an encoder; `common`: see `parser`."""
    options = parser(name, **common)
    options.add_argument("--scratch", action="store_true", help="the same network from random weights, too")
    options.add_argument("--heads", nargs="+", choices=list(heads), default=default)
    return options


def jobs(options: argparse.Namespace) -> list[Job]:
    """What the options of `head_parser` ask for: one seed after the other, so that the first table is soon there."""
    starts = [PRETRAINED, *([SCRATCH] if options.scratch else [])]
    return [Job(head, start, seed) for seed in options.seeds for head in options.heads for start in starts]
