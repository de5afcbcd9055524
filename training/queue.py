"""The zoo's training queue: short leases of a GPU and idle hours of a CPU become finished encoders.

python -m sslzoo_training zoo --data DATA --out RUNS --time-limit 9m --device cuda

The next unfinished entry of queue.toml goes on where it was stopped, then the next one, until all are finished or the
time is over. Safe to kill at any moment; runners beside each other take different entries.
"""

import fcntl
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

from sslzoo import weights

from . import loop
from .checkpoint import CHECKPOINT, LOG, read_log

QUEUE = Path(__file__).parent / "queue.toml"
LEAST_SECONDS = 30.0  # below that, a start costs more than it trains
PHOTOS = "sklearn:"  # before the name of a photograph that comes with scikit-learn


class QueueError(ValueError):
    """The queue's table or a choice from it is wrong; the message names what."""


@dataclass(frozen=True)
class Entry:
    """One encoder to be trained.

    Attributes:
        id: Of the zoo.
        method: Name of a method.
        data: Folder below the root of all data, or "sklearn:NAME": a photograph that comes with scikit-learn.
        cpu: Recipe on a CPU; empty: not trained on one.
        cuda: Recipe on a GPU; empty: not trained on one.
        settings: What differs from the recipe.
    """

    id: str
    method: str
    data: str
    cpu: str = ""
    cuda: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def source(self, root: Path) -> Path:
        """Where its images are.

        Args:
            root: Of all data.
        """
        if self.data.startswith(PHOTOS):
            return Path(str(files("sklearn.datasets.images") / self.data.removeprefix(PHOTOS)))
        return root / self.data

    def recipe(self, device: str) -> str:
        """Its recipe on "cpu" or "cuda"; empty: none."""
        return self.cuda if device == "cuda" else self.cpu

    def folder(self, out: Path, device: str) -> Path:
        """Its run: a recipe has its own folder, since a run goes on with its own settings only."""
        return out / self.recipe(device) / self.id


def read_queue(path: Path = QUEUE) -> list[Entry]:
    """All entries, in order.

    Raises:
        QueueError: An unknown or a missing key, named.
    """
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    known = {f.name for f in fields(Entry)} - {"id"}
    entries = []
    for id_, own in table.get("entries", {}).items():
        row = table.get("default", {}) | own
        if unknown := sorted(set(row) - known):
            near = get_close_matches(unknown[0], known, n=1)
            raise QueueError(f"{path.name}, {id_}: no key {unknown[0]!r}; did you mean {(near or sorted(known))[0]}?")
        if missing := [key for key in ("method", "data") if key not in row]:
            raise QueueError(f"{path.name}, {id_}: lacks {', '.join(missing)}.")
        entries.append(Entry(id_, **row))
    return entries


def choose(entries: Sequence[Entry], ids: Sequence[str], device: str) -> list[Entry]:
    """Those that are trained on this device; of them those asked for, in the queue's order.

    Raises:
        QueueError: An id that the queue does not have for this device; names the nearest.
    """
    possible = [entry for entry in entries if entry.recipe(device)]
    names = [entry.id for entry in possible]
    for id_ in ids:
        if id_ not in names:
            near = get_close_matches(id_, names, n=3, cutoff=0.4)
            raise QueueError(f"the queue has no {id_!r} for {device}. It has {', '.join(near or names)}.")
    return [entry for entry in possible if not ids or entry.id in ids]


def is_finished(folder: Path) -> bool:
    """Whether the run in this folder is finished."""
    return (folder / weights.CONFIG).is_file()


def state(folder: Path) -> str:
    """In words, how far a run is."""
    if is_finished(folder):
        return "finished"
    if not (folder / CHECKPOINT).is_file() or not (folder / LOG).is_file():
        return "not begun"
    log = read_log(folder)
    return f"step {log[-1]['step']}" if log else "begun"


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Whether this runner may train in the folder. The claim ends with the process, however that ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".claim").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def run_queue(
    entries: Sequence[Entry], data: Path, out: Path, *, device: str, time_limit: float | None = None, monitor: str = ""
) -> list[loop.Outcome]:
    """Train entries in turn until all are finished, the time is over or a signal comes.

    Args:
        entries: What `choose` gave.
        data: Root of the data: the entries name folders below it.
        out: Runs are in OUT/RECIPE/ID.
        device: "cpu" or "cuda".
        time_limit: Seconds for all of them.
        monitor: Labelled folder for kNN below the root of the data; none if empty.

    Returns:
        How each run that this call went on with ended.
    """
    deadline = None if time_limit is None else time.monotonic() + time_limit
    outcomes: list[loop.Outcome] = []
    for entry in entries:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left < LEAST_SECONDS and outcomes:
            break
        folder = entry.folder(out, device)
        with claimed(folder) as mine:
            if not mine or is_finished(folder):
                continue
            outcomes.append(
                loop.pretrain(
                    entry.method,
                    entry.source(data),
                    folder,
                    recipe=entry.recipe(device),
                    resume=True,
                    time_limit=left,
                    monitor=data / monitor if monitor else None,
                    device=device,
                    **entry.settings,
                )
            )
        if not outcomes[-1].finished:
            break
    return outcomes
