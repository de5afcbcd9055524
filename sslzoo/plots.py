"""Pictures of results: confusion matrix, bars, curves, contact sheet, masks. To files, without a display or pyplot.

confusion_picture(matrix, ["cat", "dog"], Path("confusion.png"), title="byol-resnet18 on pets")
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch, Rectangle
from PIL import Image

DPI = 120
# Okabe & Ito's palette: told apart with every common kind of colour blindness.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")
WRONG = "#D55E00"
ON_IMAGES = ("#E69F00", "#56B4E9", "#F0E442", "#CC79A7", "#009E73", "#D55E00", "#0072B2")  # brightest first
LABEL_LENGTH = 24  # characters; longer names lose their middle
OVERLAY = 0.6  # of a class's colour over a pixel
COUNTED = 20  # classes; beyond, the cells are too small for counts
_CHARACTER = 0.085  # inches; a little more than the mean width at 9 points

Array = np.ndarray[Any, Any]


def confusion_picture(matrix: Array, classes: Sequence[str], path: Path, title: str = "") -> None:
    """Draw a confusion matrix as a PNG file: coloured by the share of each true class, labelled with counts.

    With more than `COUNTED` classes the labels are percentages of the true class instead, and zeros stay empty.

    Args:
        matrix: (K, K) counts; rows are the true classes, columns the predictions.
        classes: Names of the K classes.
        path: Where to write the picture; its folder is made.
        title: Above the picture.

    Raises:
        ValueError: The matrix does not fit the classes.
    """
    k = len(classes)
    matrix = np.asarray(matrix)
    if k == 0 or matrix.shape != (k, k):
        raise ValueError(f"{k} classes need a matrix of shape ({k}, {k}), got {matrix.shape}.")
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    names = [_label(name) for name in classes]
    cell = min(max(6 / k, 0.3), 1.1)
    label = _CHARACTER * max(map(len, names))
    side = max(k * cell + label + 0.8, 3.5)
    figure = _figure(side, side + 0.4)
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(k), names, rotation=0 if label < cell else 90, fontsize=9)
    axes.set_yticks(range(k), names, fontsize=9)
    axes.set_xlabel("predicted" + (" (numbers: % of the true class)" if k > COUNTED else ""))
    axes.set_ylabel("true")
    axes.spines[:].set_visible(False)
    _write_cells(axes, matrix, shares, cell)
    _save(figure, path, title)


def _write_cells(axes: Axes, matrix: Array, shares: Array, cell: float) -> None:
    percent = len(matrix) > COUNTED
    texts = np.rint(100 * shares).astype(int) if percent else matrix
    widest = len(str(texts.max()))
    size = min(11.0, 72 * cell / (0.75 * max(widest, 2)))  # points; a digit is about 0.64 of them wide
    for i, j in np.ndindex(*matrix.shape):
        if percent and texts[i, j] == 0:
            continue
        colour = "white" if shares[i, j] > 0.55 else "black" if matrix[i, j] else "0.6"
        axes.text(j, i, str(texts[i, j]), ha="center", va="center", color=colour, fontsize=size)


def bars_picture(
    rows: Sequence[str],
    values: Mapping[str, Sequence[float]],
    path: Path,
    title: str = "",
    *,
    errors: Mapping[str, Sequence[float]] | None = None,
) -> None:
    """Draw accuracies as horizontal bars in a PNG file, one group a row and one colour a column.

    Args:
        rows: What was measured, such as models; the first stands on top.
        values: Column name -> accuracies in [0, 1], one a row.
        path: Where to write the picture; its folder is made.
        title: Above the picture.
        errors: Column name -> standard deviations, drawn as whiskers.

    Raises:
        ValueError: A column has more or fewer values than there are rows.
    """
    for name, column in values.items():
        if len(column) != len(rows):
            raise ValueError(f"{len(rows)} rows need {len(rows)} values, {name!r} has {len(column)}.")
    names = [_label(row, 40) for row in rows]
    height = 0.8 / len(values)  # of a bar; groups are 1 apart
    inches = 1.3 + len(rows) * (0.16 + 0.26 * len(values))
    figure = _figure(6.5 + _CHARACTER * max(map(len, names)), inches)
    axes = figure.add_subplot()
    for i, (name, column) in enumerate(values.items()):
        places = np.arange(len(rows)) + (i - (len(values) - 1) / 2) * height
        spread = None if errors is None else 100 * np.asarray(errors[name])
        percent = 100 * np.asarray(column)
        axes.barh(places, percent, height, xerr=spread, color=COLOURS[i % len(COLOURS)], ecolor="0.25", label=name)
        ends = percent if spread is None else percent + spread
        for place, end, value in zip(places, ends, percent, strict=True):
            axes.text(end + 0.8, place, f"{value:.1f}", va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), names, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 108)  # room for "100.0" behind the longest bar
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("accuracy (%)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower right", ncols=len(values), frameon=False)
    _save(figure, path, title)


def curves_picture(
    curves: Mapping[str, Mapping[int, float]],
    path: Path,
    title: str = "",
    *,
    errors: Mapping[str, Mapping[int, float]] | None = None,
    x_label: str = "",
) -> None:
    """Draw accuracies as curves over counts, on a logarithmic scale, in a PNG file.

    Args:
        curves: Name -> count, such as of images -> accuracy in [0, 1].
        path: Where to write the picture; its folder is made.
        title: Above the picture.
        errors: Name -> count -> standard deviation, drawn as whiskers.
        x_label: What is counted.

    Raises:
        ValueError: No curve, or one without a point.
    """
    if not curves or not all(curves.values()):
        raise ValueError(f"Curves need points, got {', '.join(map(repr, curves)) or 'no curves'}.")
    figure = _figure(6.5, 4.5)
    axes = figure.add_subplot()
    for i, (name, curve) in enumerate(curves.items()):
        counts = sorted(curve)
        spread = None if errors is None else [100 * errors[name][count] for count in counts]
        axes.errorbar(
            counts, [100 * curve[count] for count in counts], spread, label=name, color=COLOURS[i % len(COLOURS)],
            marker="osD^"[i % 4], capsize=3,
        )  # fmt: skip
    ticks = sorted({count for curve in curves.values() for count in curve})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:,}".replace(",", "\N{NARROW NO-BREAK SPACE}") for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel(x_label)
    axes.set_ylabel("accuracy (%)")
    axes.grid(axis="y", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    _save(figure, path, title)


def contact_sheet(
    images: Sequence[Image.Image],
    truth: Sequence[str] | None,
    predicted: Sequence[str],
    path: Path,
    title: str = "",
    *,
    columns: int = 6,
) -> None:
    """Draw images in a grid as a PNG file, each above its true and its predicted class.

    Args:
        images: PIL images of any sizes.
        truth: Their classes; None if nobody knows.
        predicted: What a model said; wrong ones are marked with a cross and colour.
        path: Where to write the picture; its folder is made.
        title: Above the picture.
        columns: Images in a row, at most.

    Raises:
        ValueError: No images, or not one class and one prediction for each.
    """
    counts = [len(images), *([] if truth is None else [len(truth)]), len(predicted)]
    if len(set(counts)) > 1 or not images:
        raise ValueError(f"Needs one class and one prediction an image, got {', '.join(map(str, counts))}.")
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    figure = _figure(1.7 * max(columns, 3), 2.05 * rows + 0.4)
    cells = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in cells:
        axes.set_axis_off()
    for i, (axes, image, said) in enumerate(zip(cells, images, predicted, strict=False)):
        right = truth is None or truth[i] == said
        # small images are shown with their pixels, not blurred
        axes.imshow(image.convert("RGB"), interpolation="nearest" if max(image.size) < 64 else "antialiased")
        text = _label(said, 20)
        if truth is not None:
            text = f"true: {_label(truth[i], 14)}\n{'✓' if right else '✗'} said: {_label(said, 14)}"
        axes.annotate(text, (0.5, 0), (0, -4), "axes fraction", "offset points", ha="center", va="top", fontsize=8,
                      color="black" if right else WRONG)  # fmt: skip
    _save(figure, path, title)


def overlay_sheet(
    cells: Sequence[tuple[Image.Image, Array | None]],
    classes: Sequence[str],
    colours: Sequence[tuple[int, int, int]],
    path: Path,
    title: str = "",
    *,
    captions: Sequence[str] | None = None,
    columns: int = 3,
) -> None:
    """Draw images with the colours of their classes over them in a grid as a PNG file, with a legend.

    Args:
        cells: Images, each with the class numbers (H, W) of its pixels, or None to show the image alone. Pixels of
            other numbers than those of the classes stay as they are.
        classes: Names of the classes; the legend has those that are there.
        colours: Of the classes, (red, green, blue).
        path: Where to write the picture; its folder is made.
        title: Above the picture.
        captions: Below the cells.
        columns: Cells in a row, at most.

    Raises:
        ValueError: No images, or not one caption a cell.
    """
    if not cells or len(captions or cells) != len(cells):
        raise ValueError(f"Needs one caption an image, got {len(cells)} images and {len(captions or ())} captions.")
    columns = min(columns, len(cells))
    rows = math.ceil(len(cells) / columns)
    shape = max(image.height / image.width for image, _ in cells)
    figure = _figure(3.2 * columns, (3.2 * min(shape, 2) + 0.3) * rows + 1)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    there: set[int] = set()
    for axes in grid:
        axes.set_axis_off()
    for i, (axes, (image, mask)) in enumerate(zip(grid, cells, strict=False)):
        pixels = np.asarray(image.convert("RGB"))
        if mask is not None:
            there |= set(np.unique(mask).tolist())
            pixels = _overlaid(pixels, mask, colours)
        axes.imshow(pixels, interpolation="nearest" if max(image.size) < 64 else "antialiased")
        if captions is not None:
            text = _label(captions[i], 40)
            axes.annotate(text, (0.5, 0), (0, -4), "axes fraction", "offset points", ha="center", va="top", fontsize=8)
    named = [k for k in range(len(classes)) if k in there]
    handles = [Patch(color="#{:02x}{:02x}{:02x}".format(*colours[k]), label=_label(classes[k])) for k in named]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 2 * columns), frameon=False)
    _save(figure, path, title)


def _overlaid(pixels: Array, mask: Array, colours: Sequence[tuple[int, int, int]]) -> Array:
    """Pixels (H, W, 3) with `OVERLAY` parts of their classes' colours."""
    known = mask < len(colours)
    over = np.asarray(colours)[np.where(known, mask, 0)]
    mixed = (1 - OVERLAY) * pixels + OVERLAY * over
    return np.where(known[..., None], np.rint(mixed).astype(np.uint8), pixels)


def boxes_picture(
    images: Sequence[Image.Image],
    found: Sequence[tuple[Array, Array, Array]],
    classes: Sequence[str],
    path: Path,
    title: str = "",
    *,
    truth: Sequence[tuple[Array, Array]] | None = None,
) -> None:
    """Draw images with boxes in a PNG file: each box with class and score, in the colour of its class.

    Args:
        images: PIL images of any sizes.
        found: For each the boxes (n, 4), left, top, right, bottom in pixels, their class numbers (n,) and scores (n,).
        classes: Names of the classes.
        path: Where to write the picture; its folder is made.
        title: Above the picture.
        truth: For each image true boxes and their class numbers, drawn on a copy of it, to its left.

    Raises:
        ValueError: No images, or not one entry for each.
    """
    counts = {len(images), len(found), len(images if truth is None else truth)}
    if len(counts) > 1 or not images:
        raise ValueError(f"Needs one entry an image, got {', '.join(map(str, sorted(counts)))}.")
    columns = min(2, len(images)) if truth is None else 2
    drawn: list[tuple[int, str, Array, Array, Array | None]] = []
    for i, boxes in enumerate(found):
        if truth is not None:
            drawn.append((i, "true", *truth[i], None))
        drawn.append((i, "" if truth is None else "found", *boxes))
    rows = math.ceil(len(drawn) / columns)
    shape = float(np.mean([image.height / image.width for image in images]))
    figure = _figure(4.5 * columns, (4.4 * shape + 0.1 + 0.2 * (truth is not None)) * rows + 0.8)
    cells = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in cells:
        axes.set_axis_off()
    for axes, (i, what, xyxy, labels, scores) in zip(cells, drawn, strict=False):
        axes.imshow(images[i].convert("RGB"))
        axes.set_title(what, fontsize=9, pad=3)
        _draw_boxes(axes, xyxy, labels, scores, classes)
    present = sorted({int(label) for _, _, _, labels, _ in drawn for label in labels})
    handles = [Patch(color=_on_image(label), label=_label(classes[label])) for label in present]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)), frameon=False)
    _save(figure, path, title)


def _on_image(label: int) -> str:
    return ON_IMAGES[label % len(ON_IMAGES)]


def _draw_boxes(axes: Axes, xyxy: Array, labels: Array, scores: Array | None, classes: Sequence[str]) -> None:
    """Boxes over an image; the class is written at those that have a score, others are told by the legend."""
    for i in reversed(range(len(xyxy))):  # the best, which come first, lie on top
        (left, top, right, bottom), label = xyxy[i].tolist(), int(labels[i])
        colour = _on_image(label)
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=1.3))
        if scores is not None:
            axes.text(
                left, top, f"{_label(classes[label], 14)} {scores[i]:.0%}", fontsize=5.5, va="top", clip_on=True,
                bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.8, "alpha": 0.85},
            )  # fmt: skip


def _label(name: str, length: int = LABEL_LENGTH) -> str:
    """Shorten a name in the middle, and keep matplotlib from reading "$" as mathematics."""
    if len(name) > length:
        tail = (length - 1) // 2
        name = f"{name[: length - 1 - tail]}…{name[-tail:]}"
    return name.replace("$", r"\$")


def _figure(width: float, height: float) -> Figure:
    """Make a figure of this size in inches, with some air around its parts."""
    return Figure(figsize=(width, height), dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))


def _save(figure: Figure, path: Path, title: str) -> None:
    lines = textwrap.wrap(title, width=int(figure.get_figwidth() / 0.1))  # a character at 12 points is 0.1 inch wide
    figure.suptitle("\n".join(lines).replace("$", r"\$"), fontsize=12)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
