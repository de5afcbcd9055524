"""What this project has measured of its encoders, from the file of results where such numbers live. Needs no torch."""

import csv
from functools import cache
from importlib.util import find_spec
from pathlib import Path


def results() -> Path | None:
    """The results that come with the package sslzoo_evaluations: a file that is read, not code that is imported."""
    found = find_spec("sslzoo_evaluations")
    folders = found.submodule_search_locations if found else None
    return Path(folders[0]) / "results.csv" if folders else None


def linear_accuracy(model: str, data: str, sha256: str) -> float | None:
    """Top-1 accuracy, 0 to 1, of a linear probe on the test images of a model's own data set; the mean over seeds.

    Args:
        model: Zoo id.
        data: What it was pretrained on.
        sha256: Of its weights: a number of other weights is none of this model.
    """
    path = results()
    values = _linear(path).get((model, data, sha256)) if path and path.is_file() else None
    return sum(values.values()) / len(values) if values else None


@cache
def _linear(path: Path) -> dict[tuple[str, str, str], dict[str, float]]:
    """(model, data, SHA-256) -> seed -> accuracy; of rows with the same seed the last one counts."""
    found: dict[tuple[str, str, str], dict[str, float]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if (row["protocol"], row["metric"]) == ("linear", "top1"):
                found.setdefault((row["model"], row["data"], row["sha256"]), {})[row["seed"]] = float(row["value"])
    return found
