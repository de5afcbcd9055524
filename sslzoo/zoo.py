"""The zoo: which encoders there are, read from zoo.toml. Needs no torch.

sslzoo.list_models(method="byol")                 # a table
sslzoo.info("byol-resnet18quarter-cifar10").licence
"""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, fields
from difflib import SequenceMatcher
from functools import cache
from html import escape
from pathlib import Path
from typing import Any, overload

from sslzoo.measured import linear_accuracy

TABLE = Path(__file__).with_name("zoo.toml")


_KINDS: Mapping[type, str] = {
    str: "text",
    int: "an integer",
    float: "a number such as 0.5",
    bool: "true or false",
}


class UnknownModelError(ValueError):
    """No model of the zoo has this id or alias."""


class ZooTableError(ValueError):
    """The table of the zoo (zoo.toml) is wrong."""


@dataclass(frozen=True)
class UpstreamFile:
    """A file that the authors, or others, have published with the weights of a model.

    Attributes:
        family: What reads it: a module of sslzoo/upstream/.
        url: Where it is.
        bytes: About its size.
        digest: What is known of its digest: "sha256:" or "md5:" and the first hex digits, at least eight; or "".
    """

    family: str
    url: str
    bytes: int
    digest: str = ""


@dataclass(frozen=True)
class Upstream:
    """What is known of weights that were not trained here.

    Attributes:
        authors: Who published the weights, and where their licence is stated.
        accuracy: Top-1 accuracy of a linear probe on ImageNet in percent, as published; never measured here. 0.0 if
            none is known.
        accuracy_source: Where that is published.
        mean: By channel, of pixels in [0, 1].
        std: By channel, of pixels in [0, 1].
        interpolation: With which its centre view is resized: "bicubic" or "bilinear".
        crop_pct: What part of the resized image the centre view is.
        files: The same weights in one or more files, in the order in which to try them.
        padding: See `sslzoo.resnets.adapt`; "" is timm's own.
        last_stride: See `sslzoo.resnets.adapt`.
        sobel: See `sslzoo.resnets.adapt`.
        note: One sentence for the card on what a user should know, or "".
    """

    authors: str
    accuracy: float
    accuracy_source: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    files: tuple[UpstreamFile, ...]
    padding: str = ""
    last_stride: int = 2
    sobel: bool = False
    note: str = ""


@dataclass(frozen=True)
class ModelInfo:
    """One row of the zoo.

    Attributes:
        id: `<method>-<arch>-<data>`, and `-<variant>` if it has one: what `sslzoo.load` takes.
        method: How the encoder was pretrained, such as "byol".
        arch: Architecture, in timm's words, or a variant such as "resnet18quarter".
        data: What it was pretrained on.
        licence: SPDX identifier of the licence of the weights.
        num_features: Width D of `encoder(images)`, which is (B, D).
        params: Parameters of the encoder, without any head.
        input_size: Channels, height and width (pixels) of the images it was trained on.
        sha256: Of its model.safetensors; "" where that is made on this machine (see `sslzoo.originals`).
        bytes: Size of its model.safetensors.
        source: Where that file is: "bundled" comes with the package, "org/name" is on the Hugging Face Hub, "upstream"
            is converted from what its authors published.
        epochs: Passes over the data in pretraining; 0 if that is not known.
        hardware: What it was trained on; "" if that is not known.
        paper: Title, authors and year of the method.
        paper_url: Where to read it.
        summary: One sentence about this model.
        variant: What sets it apart from another model of the same method, architecture and data.
        upstream: About the authors' files, for the source "upstream".
    """

    id: str
    method: str
    arch: str
    data: str
    licence: str
    num_features: int
    params: int
    input_size: tuple[int, ...]
    sha256: str
    bytes: int
    source: str
    epochs: int
    hardware: str
    paper: str
    paper_url: str
    summary: str
    variant: str = ""
    upstream: Upstream | None = None

    @property
    def published(self) -> str:
        """Accuracy on ImageNet that its authors state, as tables show it; "" if none is known."""
        return f"{self.upstream.accuracy:.1f} %" if self.upstream and self.upstream.accuracy else ""

    @property
    def measured(self) -> str:
        """Accuracy of a linear probe on its own data set that this project has measured; "" if it has not."""
        accuracy = linear_accuracy(self.id, self.data, self.sha256)
        return "" if accuracy is None else f"{accuracy:.1%}".replace("%", " %")

    def __str__(self) -> str:
        facts = asdict(self)
        facts |= facts.pop("upstream") or {}
        files = facts.pop("files", ())
        facts |= {"accuracy": f"{self.published} (published)"} if self.published else {}
        facts |= {"measured": f"{self.measured} (linear probe on {self.data}, here)"} if self.measured else {}
        facts = {name: value for name, value in facts.items() if value not in ("", 0)}
        facts |= {f"file {n}": f"{file['url']} ({file['bytes'] / 1e6:.0f} MB)" for n, file in enumerate(files, start=1)}
        width = max(map(len, facts))
        return "\n".join(f"{name:<{width}}  {value}" for name, value in facts.items())


_COLUMNS = ("id", "method", "arch", "data", "features", "params", "size", "licence", "published", "measured")
_NUMBERS = ("features", "params", "size", "published", "measured")  # aligned to the right


class ModelTable(Sequence[ModelInfo]):
    """Rows of the zoo: a sequence of `ModelInfo` that prints as a table, in a terminal and in a notebook.

    "published" is what others state of a linear probe on ImageNet, "measured" what this project has measured on the
    data of its row: figures of two kinds, not to be compared.
    """

    def __init__(self, rows: Sequence[ModelInfo]) -> None:
        self._rows = tuple(rows)

    @overload
    def __getitem__(self, index: int) -> ModelInfo: ...
    @overload
    def __getitem__(self, index: slice) -> "ModelTable": ...
    def __getitem__(self, index: int | slice) -> "ModelInfo | ModelTable":
        return ModelTable(self._rows[index]) if isinstance(index, slice) else self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[ModelInfo]:
        return iter(self._rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ModelTable) and self._rows == other._rows

    def __hash__(self) -> int:
        return hash(self._rows)

    def __str__(self) -> str:
        if not self:
            return "no models"
        lines = [_COLUMNS, *map(_cells, self)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(
                cell.rjust(width) if column in _NUMBERS else cell.ljust(width)
                for column, cell, width in zip(_COLUMNS, line, widths, strict=True)
            ).rstrip()
            for line in lines
        )

    __repr__ = __str__

    def _repr_html_(self) -> str:
        if not self:
            return "<p>no models</p>"
        head = "".join(f"<th>{column}</th>" for column in _COLUMNS)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in _cells(model)) + "</tr>" for model in self
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cells(model: ModelInfo) -> tuple[str, ...]:
    return (
        model.id,
        model.method,
        model.arch,
        model.data,
        str(model.num_features),
        f"{model.params / 1e6:.2f} M",
        f"{model.bytes / 1e6:.1f} MB",
        model.licence,
        model.published,
        model.measured,
    )


@dataclass(frozen=True)
class Zoo:
    """The whole table: `models` in the order of the file, `aliases` short name -> id."""

    models: ModelTable
    aliases: Mapping[str, str]


@cache
def read_table(path: Path) -> Zoo:
    """Read and check a zoo table; read once per path.

    Raises:
        ZooTableError: An unknown or missing key, a value of the wrong type, or an alias of nothing.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ZooTableError(f"{path} is not TOML: {error}") from error
    _reject_unknown(table, {"aliases", "models"}, str(path))
    models = ModelTable([_read_model(path, id_, row) for id_, row in table.get("models", {}).items()])
    aliases: dict[str, str] = table.get("aliases", {})
    ids = {model.id for model in models}
    for alias, target in aliases.items():
        if target not in ids:
            raise ZooTableError(f"{path}: alias {alias!r} points to {target!r}, which is no model of the table.")
        if alias in ids:
            raise ZooTableError(f"{path}: alias {alias!r} is also the id of a model. Rename the alias.")
    return Zoo(models, aliases)


def _read_model(path: Path, id_: str, row: dict[str, Any]) -> ModelInfo:
    where = f'{path}, [models."{id_}"]'
    _check_types(ModelInfo, row, where)
    size = row["input_size"]
    if not (isinstance(size, list) and len(size) == 3 and all(type(n) is int for n in size)):
        raise ZooTableError(f"{where}: input_size must be [channels, height, width], got {size!r}.")
    upstream = _read_upstream(row["upstream"], f"{where}, upstream") if "upstream" in row else None
    if (upstream is not None) != (row["source"] == "upstream"):
        raise ZooTableError(f'{where}: source = "upstream" and a table upstream belong together.')
    return ModelInfo(id=id_, **{**row, "input_size": tuple(size), "upstream": upstream})


def _read_upstream(row: Any, where: str) -> Upstream:
    if not isinstance(row, dict):
        raise ZooTableError(f"{where} must be a table, got {row!r}.")
    _check_types(Upstream, row, where)
    for name in ("mean", "std"):
        if not (isinstance(row[name], list) and all(type(n) is float for n in row[name])):
            raise ZooTableError(f"{where}: {name} must be numbers such as [0.5, 0.5, 0.5], got {row[name]!r}.")
    if not isinstance(row["files"], list) or not row["files"]:
        raise ZooTableError(f"{where}: files must be one or more tables, got {row['files']!r}.")
    for file in row["files"]:
        _check_types(UpstreamFile, file, f"{where}, files")
    files = tuple(UpstreamFile(**file) for file in row["files"])
    return Upstream(**{**row, "mean": tuple(row["mean"]), "std": tuple(row["std"]), "files": files})


def _check_types(kind: type[ModelInfo | Upstream | UpstreamFile], row: Mapping[str, Any], where: str) -> None:
    """Refuse unknown and missing keys, and values that are no text, integer or number where one is needed."""
    known: dict[str, Field[Any]] = {field.name: field for field in fields(kind) if field.name != "id"}
    _reject_unknown(row, set(known), where)
    if missing := [name for name, field in known.items() if name not in row and field.default is MISSING]:
        raise ZooTableError(f"{where}: missing {', '.join(missing)}.")
    for name, value in row.items():
        wanted: Any = known[name].type
        if wanted in _KINDS and type(value) is not wanted:
            raise ZooTableError(f"{where}: {name} must be {_KINDS[wanted]}, got {value!r}.")


def _reject_unknown(table: Mapping[str, Any], known: set[str], where: str) -> None:
    if unknown := [key for key in table if key not in known]:
        raise ZooTableError(f"{where}: unknown {', '.join(map(repr, unknown))}. Known: {', '.join(sorted(known))}.")


def list_models(
    *, method: str | None = None, arch: str | None = None, data: str | None = None, licence: str | None = None
) -> ModelTable:
    """List the models of the zoo, all of them or those that match every filter.

    Args:
        method: Keep one pretraining method, such as "byol". Filters are exact, upper and lower case alike.
        arch: Keep one architecture, such as "resnet50".
        data: Keep one pretraining set, such as "cifar10".
        licence: Keep one licence, such as "apache-2.0".

    Raises:
        ValueError: No model of the zoo has this value; the message names those there are.
    """
    models = list(read_table(TABLE).models)
    kept = models
    for column, wanted in {"method": method, "arch": arch, "data": data, "licence": licence}.items():
        if wanted is None:
            continue
        values = sorted({getattr(model, column) for model in models})
        if wanted.lower() not in (value.lower() for value in values):
            raise ValueError(f"No model has {column}={wanted!r}. There are: {', '.join(values) or 'no models'}.")
        kept = [model for model in kept if getattr(model, column).lower() == wanted.lower()]
    return ModelTable(kept)


def resolve_alias(name: str) -> str:
    """Return the id that an alias stands for; any other name as it is."""
    return read_table(TABLE).aliases.get(name, name)


def info(name: str) -> ModelInfo:
    """Return the row of one model, by id or alias.

    Raises:
        UnknownModelError: With the nearest ids.
    """
    id_ = resolve_alias(name)
    for model in read_table(TABLE).models:
        if model.id == id_:
            return model
    raise UnknownModelError(_unknown(name))


def _unknown(name: str) -> str:
    zoo = read_table(TABLE)
    names = [model.id for model in zoo.models] + list(zoo.aliases)
    if not names:
        return f"Unknown model {name!r}: the zoo has no models."
    ranked = sorted(names, key=lambda known: _likeness(name, known), reverse=True)
    near = [known for known in ranked if _likeness(name, known) > 0.6][:5]
    hint = f"Did you mean {', '.join(map(repr, near))}? " if near else ""
    return f"Unknown model {name!r}. {hint}sslzoo.list_models() shows all {len(zoo.models)}."


def _likeness(name: str, known: str) -> float:
    """0 to 1. A part of an id counts as the id: "byol" or "boyl" should find every byol-*."""
    name = name.lower()
    if name and name in known:
        return 1.0
    parts = known.split("-")
    prefixes = ("-".join(parts[:n]) for n in range(1, len(parts) + 1))
    return max(SequenceMatcher(None, name, prefix).ratio() for prefix in prefixes)
