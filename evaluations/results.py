"""Measured numbers: rows of results.csv, the only place where they live. Cards and README are made from it.

Rows are only ever appended; of two rows with the same key the later one counts.
"""

import csv
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, stdev

from sslzoo.provenance import commit

PACKAGED = Path(__file__).with_name("results.csv")
PIXELS, TOP_PIXELS = "pixels", "pixels:tophalf"  # the baselines without a network
SEES_LIGHTNESS = "-lightness"  # after the architecture of random weights whose network sees only L of Lab


class ResultsError(ValueError):
    """A file of results is not what this version reads; the message names file, line and column."""


@dataclass(frozen=True)
class Result:
    """One measured number.

    Attributes:
        model: Zoo id, "run:…" for an unpublished run, "random:ARCH@SIZE", "pixels" or "pixels:tophalf".
        protocol: Name of the evaluation, such as "linear".
        data: Name of the data set.
        metric: What `value` is, such as "top1".
        value: 0 to 1.
        seed: Of everything random in the evaluation.
        n_train: Training images.
        n_test: Test images.
        sha256: Of the weights, so that a number of other weights is known for one; "" without weights.
        settings: What the evaluation chose or was told, `key=value` with blanks between.
        commit: Of the code; "+" for uncommitted changes, "" outside a git checkout.
        date: ISO 8601 day, UTC.
    """

    model: str
    protocol: str
    data: str
    metric: str
    value: float
    seed: int
    n_train: int
    n_test: int
    sha256: str
    settings: str
    commit: str
    date: str

    @property
    def key(self) -> tuple[str, str, str, str, int]:
        """What a later row must share to replace this one."""
        return self.model, self.protocol, self.data, self.metric, self.seed


COLUMNS = tuple(field.name for field in fields(Result))
_TYPES = {field.name: field.type for field in fields(Result)}


def default_file() -> Path:
    """The checkout's results.csv; for an installed package results.csv in the current folder."""
    return PACKAGED if (PACKAGED.parents[1] / "pyproject.toml").is_file() else Path("results.csv")


def data_name(folder: Path) -> str:
    """Name of a data set in `Result.data`: that of its folder."""
    return folder.resolve().name.lower()


def read(path: Path) -> list[Result]:
    """All rows, oldest first.

    Raises:
        ResultsError: Unknown or missing columns (named), or a value that is no number where one is needed.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        header = next(rows, [])
        if unknown := [column for column in header if column not in COLUMNS]:
            raise ResultsError(f"{path}: unknown columns {', '.join(unknown)}. Known: {', '.join(COLUMNS)}.")
        if missing := [column for column in COLUMNS if column not in header]:
            raise ResultsError(f"{path}: missing columns {', '.join(missing)}.")
        return [_parse(f"{path}, line {rows.line_num}", dict(zip(header, row, strict=False))) for row in rows]


def _parse(where: str, row: dict[str, str]) -> Result:
    if len(row) != len(COLUMNS):
        raise ResultsError(f"{where}: {len(row)} values, needs {len(COLUMNS)}.")
    values: dict[str, object] = {}
    for column, text in row.items():
        try:
            values[column] = _TYPES[column](text)  # type: ignore[operator]
        except ValueError as error:
            raise ResultsError(f"{where}: {column} is {text!r}, needs a number.") from error
    return Result(**values)  # type: ignore[arg-type]


def new(
    *, model: str, protocol: str, data: str, metric: str, value: float, seed: int, n_train: int, n_test: int,
    sha256: str, settings: str,
) -> Result:  # fmt: skip
    """A number that was measured today by this code; see `Result` for the arguments."""
    return Result(
        model=model, protocol=protocol, data=data, metric=metric, value=round(value, 4), seed=seed, n_train=n_train,
        n_test=n_test, sha256=sha256, settings=settings, commit=commit(PACKAGED.parent, ignore=PACKAGED.name),
        date=datetime.now(UTC).date().isoformat(),
    )  # fmt: skip


def append(result: Result, path: Path) -> None:
    """Append one row, in one write: rows of two evaluations that end together do not mix.

    Raises:
        ResultsError: The file has other columns.
    """
    _create(path)
    with path.open(newline="", encoding="utf-8") as file:
        if tuple(next(csv.reader(file), [])) != COLUMNS:
            raise ResultsError(f"{path} has other columns than {', '.join(COLUMNS)}: append to another file.")
    row = astuple(result)
    line = _line(f"{value:.4f}" if isinstance(value, float) else value for value in row)
    with path.open("ab", buffering=0) as file:  # O_APPEND
        file.write(line)


def _create(path: Path) -> None:
    """Make a file with a header, unless there is one. It appears whole: another writer never sees it without."""
    if path.exists():
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_bytes(_line(COLUMNS))
    try:
        path.hardlink_to(partial)
    except FileExistsError:
        pass
    finally:
        partial.unlink()


def _line(values: Iterable[object]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue().encode()


def latest(results: Iterable[Result]) -> list[Result]:
    """Of rows with the same key the last one, in the order in which keys first appear."""
    last: dict[tuple[str, str, str, str, int], Result] = {}
    for result in results:
        last[result.key] = result
    return list(last.values())


def by_data(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Rows of each data set, in the order in which the sets first appear."""
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(result.data, []).append(result)
    return found


def spread(values: Sequence[float]) -> float:
    """Standard deviation over seeds; 0 of one."""
    return stdev(values) if len(values) > 1 else 0.0


def cell(values: Sequence[float]) -> str:
    """Of a table: mean ± standard deviation over seeds, in percent."""
    if not values:
        return "–"
    deviation = f" ± {100 * spread(values):.1f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.1f} %{deviation}"
