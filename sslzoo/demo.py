"""The demo: with 10 labels a class, does a pretrained encoder beat random weights, or no encoder at all?

sslzoo demo                      # scikit-learn's digits
sslzoo demo --data photos        # your own: one sub-folder a class
"""

import json
import shlex
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.metrics import confusion_matrix

from sslzoo import plots, zoo
from sslzoo.data import UnreadableImageError, open_images
from sslzoo.encoder import Encoder, create, load
from sslzoo.features import embed
from sslzoo.probes import fit_knn, fit_linear
from sslzoo.splits import few_labels

LABELS = 10  # a class
DRAWS = 5  # of these labels
RANDOM_SEEDS = 3
MODELS = 3  # of the zoo, unless the user names some: minutes count here
PER_CLASS = 200  # images of a folder, at most; and so few that there are not more than about TOTAL in all
TOTAL = 2000
RAW_SIDE = 32  # pixels, of a folder's images as raw pixels
MISTAKES = 24  # on the contact sheet
NAME_LENGTH = 60  # characters in the table

Array = np.ndarray[Any, Any]
Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Row:
    """Accuracies in [0, 1] of one kind of features.

    Attributes:
        name: As the table has it.
        pretrained: Whether a pretrained encoder made them; if not, this is a baseline.
        linear: (R, DRAWS) of the linear probe, for R random networks or 1 of anything else.
        knn: (R, DRAWS) of kNN.
    """

    name: str
    pretrained: bool
    linear: Array
    knn: Array


@dataclass(frozen=True, eq=False)
class DemoReport:
    """What the demo found; prints as a table, a verdict, and what to do next.

    Attributes:
        title: Data and protocol in a line.
        rows: Of the table.
        notes: What was left out, and why.
        pictures: Files that were written.
        commands: To type next.
    """

    title: str
    rows: list[Row]
    notes: list[str]
    pictures: list[Path]
    commands: list[str]

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        lines = [self.title, "", f"{'':<{width}}  linear probe (%)       kNN (%)"]
        lines += [f"{row.name:<{width}}  {_percent(row.linear):>16}  {_percent(row.knn):>12}" for row in self.rows]
        lines += [
            f"± is the standard deviation over {DRAWS} draws of the labels, and {RANDOM_SEEDS} random networks.",
            "",
        ]
        lines += [*map(_wrapped, verdict(self.rows)), ""]
        lines += [*map(_wrapped, self.notes), *([""] if self.notes else [])]
        lines += ["Pictures: " + ", ".join(str(path) for path in self.pictures), "", "Next:"]
        return "\n".join(lines + [f"  {command}" for command in self.commands])


@dataclass(frozen=True, eq=False)
class _Data:
    name: str
    source: Path  # for the commands to type next
    images: list[Image.Image]
    raw: Array  # (N, P) pixels in [0, 1]
    y: Array  # (N,) class numbers
    classes: list[str]
    notes: list[str]


def run(data: Path | None, out: Path, models: Sequence[str], say: Say = lambda text: None) -> DemoReport:
    """Run the demo.

    Args:
        data: Labelled images, such as a folder with a sub-folder a class; None takes scikit-learn's digits.
        out: Folder for the pictures (and the digits, as digits.npz).
        models: Zoo ids, aliases or model folders; none takes the smallest of those that come with the package.
        say: Called with a line now and then.

    Raises:
        ValueError: The zoo is empty, the images have no labels, or too few have.
        sslzoo.zoo.UnknownModelError: No such model.
        sslzoo.weights.WeightsError: A model's files are damaged.
    """
    names = list(dict.fromkeys(models)) or default_models()
    encoders = {name: load(name) for name in names}
    out.mkdir(parents=True, exist_ok=True)
    found = _digits(out) if data is None else _folder(data, side=max(min(e.input_size[1:]) for e in encoders.values()))
    features = {name: _embed(encoder, name, found, say) for name, encoder in encoders.items()}
    rows = [_score(_short(name), [X], found.y, pretrained=True) for name, X in features.items()]
    rows += _baselines(encoders, found, say)
    best = max(zip(names, rows, strict=False), key=lambda pair: pair[1].linear.mean())[0]
    return DemoReport(
        title=f"{found.name}: {len(found.y):,} images, {len(found.classes)} classes. {LABELS} labels a class, "
        f"tested on the other {len(found.y) - LABELS * len(found.classes):,}.",
        rows=rows,
        notes=found.notes + ([] if models else _left_out(names)),
        pictures=_pictures(out, found, rows, best, features[best]),
        commands=_commands(best, found.source, out),
    )


def default_models() -> list[str]:
    """Name the smallest models that come with the package and see whole images, in the order of the zoo's table.

    Raises:
        ValueError: There are none.
    """
    bundled = [m for m in zoo.list_models() if m.source == "bundled" and not m.arch.startswith("tophalf_")]
    if not bundled:
        raise ValueError(
            "This version of sslzoo comes without pretrained models, so there is nothing to show. Pretrain one "
            "(sslzoo pretrain --help), then: sslzoo demo --model FOLDER"
        )
    small = sorted(bundled, key=lambda model: round(model.params, -5))[:MODELS]  # of about equal ones the first
    return [model.id for model in bundled if model in small]


def verdict(rows: Sequence[Row]) -> list[str]:
    """Say in one sentence a probe which features are best, by how much, and how surely.

    The best pretrained encoder and the best baseline are compared on the same draws of labels.
    """
    return [
        f"Linear probe: {_compare([(row, row.linear.mean(axis=0)) for row in rows])}",
        f"kNN: {_compare([(row, row.knn.mean(axis=0)) for row in rows])}",
    ]


def _compare(scores: Sequence[tuple[Row, Array]]) -> str:
    """Compare the best pretrained row with the best other one; (DRAWS,) accuracies each."""
    ours, our = max((pair for pair in scores if pair[0].pretrained), key=lambda pair: pair[1].mean())
    other, their = max((pair for pair in scores if not pair[0].pretrained), key=lambda pair: pair[1].mean())
    gaps = 100 * (our - their)
    points = abs(gaps.mean())
    if points < 0.05:
        return f"{ours.name} and {other.name} tie at {our.mean():.1%}."
    won = gaps.mean() > 0
    ahead = int((gaps > 0).sum() if won else (gaps < 0).sum())
    sure = f"in all {DRAWS} draws" if ahead == DRAWS else f"but only in {ahead} of {DRAWS} draws: too close to call"
    if won:
        return f"first is {ours.name}, {points:.1f} points ahead of the best baseline, {other.name} ({sure})."
    return f"first is {other.name}, {points:.1f} points ahead of the best pretrained encoder, {ours.name} ({sure})."


def _digits(out: Path) -> _Data:
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8), grey levels 0 to 16
    source = out / "digits.npz"
    np.savez_compressed(source, images=images, labels=digits.target)
    return _Data(
        name="scikit-learn's digits",
        source=source,
        images=[Image.fromarray(image) for image in images],
        raw=digits.data / 16,
        y=digits.target,
        classes=[str(name) for name in digits.target_names],
        notes=[],
    )


def _folder(source: Path, side: int) -> _Data:
    """Read a part of a labelled set, shrunk to a shortest side of `side` pixels, which is what the encoders see."""
    found = open_images(source)
    if found.labels is None:
        raise ValueError(f"{source} has no labels. The demo needs a folder with a sub-folder of images for each class.")
    numbers, counts = np.unique(found.labels, return_counts=True)
    limit = min(PER_CLASS, max(TOTAL // len(numbers), 2 * LABELS))
    rng = np.random.default_rng(0)
    chosen = [rng.permutation(np.flatnonzero(found.labels == number))[:limit] for number in numbers]
    notes = []
    if counts.max() > limit:
        notes.append(f"Used at most {limit} images a class, of {len(found):,} in all, so that this stays quick.")
    images: list[Image.Image] = []
    labels: list[int] = []
    bad: list[UnreadableImageError] = []
    for i in np.sort(np.concatenate(chosen)):
        try:
            images.append(_shrink(found.read(i, min_size=side)[0], side))
            labels.append(found.labels[i])
        except UnreadableImageError as error:
            bad.append(error)
    if bad:
        notes.append(f"Left out {len(bad)} images that cannot be read, such as {bad[0].name}: {bad[0].reason}.")
    classes = {n: found.classes[n] if found.classes else str(n) for n in numbers.tolist()}
    return _enough(source, images, np.array(labels), classes, notes)


def _enough(
    source: Path, images: list[Image.Image], labels: Array, classes: Mapping[int, str], notes: list[str]
) -> _Data:
    """Keep the classes that have images left to test on."""
    counts = {n: int((labels == n).sum()) for n in classes}
    kept = [n for n in classes if counts[n] > LABELS]
    few = [f"{classes[n]} ({counts[n]})" for n in classes if counts[n] <= LABELS]
    listed = ", ".join(few[:8]) + (f" and {len(few) - 8} more" if len(few) > 8 else "")
    need = f"a class needs {LABELS + 1} images, {LABELS} to learn from and one to test on"
    if len(kept) < 2:
        raise ValueError(f"{source} has fewer than two classes of enough images: {need}. Too few: {listed or 'none'}.")
    if few:
        notes = [*notes, f"Left out classes with too few images: {listed}; {need}."]
    inside = [i for i, label in enumerate(labels) if label in kept]
    images = [images[i] for i in inside]
    raw = np.stack([np.asarray(image.resize((RAW_SIDE, RAW_SIDE)), dtype=np.float32).ravel() / 255 for image in images])
    y = np.searchsorted(kept, labels[inside])
    return _Data(source.resolve().name, source, images, raw, y, [classes[n] for n in kept], notes)


def _shrink(image: Image.Image, side: int) -> Image.Image:
    """Do what the encoders' transform starts with, so that it finds nothing left to do."""
    short = min(image.size)
    if short <= side:
        return image
    width, height = (length * side // short for length in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _embed(encoder: Encoder, name: str, data: _Data, say: Say) -> Array:
    """Embed all images, and say so before it takes its time."""
    say(f"embedding {len(data.images):,} images: {name}")
    return embed(encoder, data.images)


def _baselines(encoders: Mapping[str, Encoder], data: _Data, say: Say) -> list[Row]:
    """Random weights once for every network among the encoders, and raw pixels."""
    networks = {json.dumps([e.arch, e.config["model_args"], e.input_size]): e for e in encoders.values()}
    rows = []
    for encoder in networks.values():
        name = f"random weights ({encoder.arch})"
        features = [_embed(_random(encoder, seed), name, data, say) for seed in range(RANDOM_SEEDS)]
        rows.append(_score(name, features, data.y, pretrained=False))
    return [*rows, _score("raw pixels", [data.raw], data.y, pretrained=False)]


def _random(encoder: Encoder, seed: int) -> Encoder:
    """The same network with the same input settings and random weights."""
    config = encoder.config
    fresh = create(config["architecture"], seed=seed, image_size=encoder.input_size[1], **config["model_args"])
    return Encoder(fresh.model, config)


def _score(name: str, features: Sequence[Array], y: Array, *, pretrained: bool) -> Row:
    """Fit both probes on every draw of labels, and test each on all other images."""
    linear, knn = np.empty((2, len(features), DRAWS))
    for draw in range(DRAWS):
        train, test = _split(y, draw)
        for i, X in enumerate(features):
            linear[i, draw] = fit_linear(X[train], y[train], seed=draw).score(X[test], y[test])
            # of more neighbours than labels a class, some would always be of another class
            knn[i, draw] = fit_knn(X[train], y[train], k=LABELS).score(X[test], y[test])
    return Row(name, pretrained, linear, knn)


def _split(y: Array, draw: int) -> tuple[Array, Array]:
    train = few_labels(y, LABELS, seed=draw)
    return train, np.setdiff1d(np.arange(len(y)), train)


def _pictures(out: Path, data: _Data, rows: Sequence[Row], best: str, X: Array) -> list[Path]:
    """Bars of all rows; confusion and mistakes of the best encoder's linear probe on the first draw."""
    paths = [out / "accuracy.png", out / "confusion.png", out / "mistakes.png"]
    columns = {"linear probe": [row.linear for row in rows], "kNN": [row.knn for row in rows]}
    plots.bars_picture(
        [row.name for row in rows],
        {name: [float(values.mean()) for values in column] for name, column in columns.items()},
        paths[0],
        f"{data.name}, {LABELS} labels a class",
        errors={name: [float(values.std(ddof=1)) for values in column] for name, column in columns.items()},
    )
    train, test = _split(data.y, 0)
    probe = fit_linear(X[train], data.y[train], seed=0)
    predicted = probe.predict(X[test])
    title = f"{_short(best)} on {data.name}, {LABELS} labels a class"
    matrix = confusion_matrix(data.y[test], predicted, labels=range(len(data.classes)))
    plots.confusion_picture(matrix, data.classes, paths[1], f"{title}: {np.mean(predicted == data.y[test]):.1%} right")
    surest = np.argsort(-probe.predict_proba(X[test]).max(axis=1))
    wrong = surest[predicted[surest] != data.y[test][surest]]
    shown = (wrong if len(wrong) else surest)[:MISTAKES]
    plots.contact_sheet(
        [data.images[i] for i in test[shown]],
        [data.classes[n] for n in data.y[test][shown]],
        [data.classes[n] for n in predicted[shown]],
        paths[2],
        f"{'Surest mistakes' if len(wrong) else 'No mistakes, surest answers'}: {title}",
    )
    return paths


def _commands(model: str, source: Path, out: Path) -> list[str]:
    words = [
        ["probe", model, str(source), "-o", str(out / "probe")],
        ["embed", model, str(source), "-o", str(out / "features.npz")],
        ["pretrain", "byol", "--data", str(source), "--out", str(out / "byol"), "--recipe", "cifar10_cpu",
         "--time-limit", "10m"],
    ]  # fmt: skip
    return [shlex.join(["sslzoo", *line]) for line in words]


def _left_out(names: Sequence[str]) -> list[str]:
    rest = [model.id for model in zoo.list_models() if model.id not in names and model.source == "bundled"]
    return [f"Not tried, to stay quick: {', '.join(rest)}. Take them with --model ID."] if rest else []


def _percent(values: Array) -> str:
    return f"{100 * values.mean():.1f} ± {100 * values.std(ddof=1):4.1f}"


def _wrapped(text: str) -> str:
    return textwrap.fill(text, width=100, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _short(name: str) -> str:
    return name if len(name) <= NAME_LENGTH else "…" + name[1 - NAME_LENGTH :]
