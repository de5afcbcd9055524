import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from sslzoo import plots

LONG = "Cypripedium calceolus var. pubescens"


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, after their last layout."""
    figures = []
    save = Figure.savefig

    def savefig(self, *args, **kwargs):
        save(self, *args, **kwargs)
        figures.append(self)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return figures


def matrix(k, n=30):
    rng = np.random.default_rng(0)
    return np.stack([rng.multinomial(n, 0.3 / k + 0.7 * np.eye(k)[i]) for i in range(k)])


def overlap(texts):
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    return [(a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :] if a.overlaps(b)]


@pytest.mark.parametrize("name", ["7", LONG])
@pytest.mark.parametrize("k", [2, 10, 50])
def test_confusion_is_readable(k, name, tmp_path, drawn):
    counts = matrix(k)
    path = tmp_path / "new" / "confusion.png"
    plots.confusion_picture(counts, [f"{name} {i}" for i in range(k)], path, "a title that is rather long " * 3)
    axes = drawn[0].axes[0]
    assert not overlap(axes.get_xticklabels())
    assert not overlap(axes.get_yticklabels())
    cell = axes.bbox.width / k
    assert all(text.get_window_extent().width < cell and 5 <= text.get_fontsize() < cell for text in axes.texts)
    whole = drawn[0].bbox
    for text in [*axes.get_xticklabels(), *axes.get_yticklabels(), axes.xaxis.label, drawn[0]._suptitle]:
        box = text.get_window_extent()
        assert box.x0 >= -1
        assert box.y0 >= -1
        assert box.x1 <= whole.x1 + 1
        assert box.y1 <= whole.y1 + 1
    with Image.open(path) as picture:
        assert min(picture.size) > 300


def test_confusion_has_the_counts_and_from_21_classes_on_percentages(tmp_path, drawn):
    counts = np.array([[3, 1], [0, 8]])
    plots.confusion_picture(counts, ["a", "b"], tmp_path / "2.png")
    assert [text.get_text() for text in drawn[0].axes[0].texts] == ["3", "1", "0", "8"]
    np.testing.assert_allclose(drawn[0].axes[0].images[0].get_array(), [[0.75, 0.25], [0, 1]])
    many = np.eye(21, dtype=int) * 5
    many[0, 1] = 15
    plots.confusion_picture(many, [str(i) for i in range(21)], tmp_path / "21.png")
    assert [text.get_text() for text in drawn[1].axes[0].texts] == ["25", "75", *["100"] * 20]
    assert "%" in drawn[1].axes[0].get_xlabel()


def test_confusion_of_a_class_without_test_images(tmp_path):
    plots.confusion_picture(np.array([[0, 0], [1, 2]]), ["a", "b"], tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 0


def test_confusion_needs_a_row_a_class(tmp_path):
    with pytest.raises(ValueError, match=r"3 classes need a matrix of shape \(3, 3\), got \(2, 2\)"):
        plots.confusion_picture(np.eye(2), ["a", "b", "c"], tmp_path / "x.png")


def test_dollars_and_underscores_are_no_mathematics(tmp_path, drawn):
    plots.confusion_picture(np.eye(2, dtype=int), ["$x_$", "$\\frac$"], tmp_path / "x.png", "$5 and $\\frac")
    image = Image.new("RGB", (4, 4))
    plots.contact_sheet([image], ["$x_$"], ["$\\frac$"], tmp_path / "y.png", "$_$")
    assert drawn[0].axes[0].get_xticklabels()[0].get_text() == r"\$x_\$"


def test_bars_have_their_lengths_and_whiskers(tmp_path, drawn):
    rows = [f"{LONG} {i}" for i in range(5)]
    values = {"linear": [0.1, 0.2, 0.3, 0.4, 1.0], "kNN": [0.5] * 5}
    plots.bars_picture(rows, values, tmp_path / "bars.png", "t", errors={"linear": [0.05] * 5, "kNN": [0.0] * 5})
    axes = drawn[0].axes[0]
    assert [round(bar.get_width(), 6) for bar in axes.containers[1]] == [10, 20, 30, 40, 100]
    assert [text.get_text() for text in axes.texts][:5] == ["10.0", "20.0", "30.0", "40.0", "100.0"]
    assert not overlap(axes.get_yticklabels())
    assert axes.yaxis_inverted()
    with pytest.raises(ValueError, match="5 rows need 5 values, 'x' has 1"):
        plots.bars_picture(rows, {"x": [0.5]}, tmp_path / "bars.png")


def test_contact_sheet_marks_what_is_wrong(tmp_path, drawn):
    images = [Image.new(mode, size) for mode, size in [("L", (8, 8)), ("RGB", (300, 50)), ("RGB", (50, 300))] * 3]
    truth = [f"{LONG} {i}" for i in range(9)]
    said = [truth[0]] + [f"{LONG[::-1]} {i}" for i in range(8)]
    plots.contact_sheet(images, truth, said, tmp_path / "sheet.png", "t")
    texts = [text for axes in drawn[0].axes for text in axes.texts]
    assert ["✗" in text.get_text() for text in texts] == [False] + [True] * 8
    assert texts[1].get_color() == plots.WRONG
    assert not overlap(texts)
    with pytest.raises(ValueError, match="got 0, 0, 0"):
        plots.contact_sheet([], [], [], tmp_path / "sheet.png")
    with pytest.raises(ValueError, match="got 9, 2, 9"):
        plots.contact_sheet(images, truth[:2], said, tmp_path / "sheet.png")


def test_contact_sheet_without_truth_marks_nothing(tmp_path, drawn):
    plots.contact_sheet([Image.new("RGB", (8, 8))] * 2, None, ["cat 90%", f"{LONG} 55%"], tmp_path / "sheet.png")
    texts = [text for axes in drawn[0].axes for text in axes.texts]
    assert texts[0].get_text() == "cat 90%"
    assert texts[1].get_text().endswith("55%")
    assert {text.get_color() for text in texts} == {"black"}
    with pytest.raises(ValueError, match="got 1, 2"):
        plots.contact_sheet([Image.new("RGB", (8, 8))], None, ["a", "b"], tmp_path / "sheet.png")


def test_curves_have_their_points_and_whiskers(tmp_path, drawn):
    curves = {"a": {50_000: 0.9, 500: 0.4}, "b": {500: 0.2}}
    errors = {"a": {50_000: 0.0, 500: 0.05}, "b": {500: 0.1}}
    plots.curves_picture(curves, tmp_path / "curves.png", "t", errors=errors, x_label="images")
    axes = drawn[0].axes[0]
    first, second = (container.lines[0] for container in axes.containers)
    assert first.get_xydata().tolist() == [[500, 40], [50_000, 90]]
    assert second.get_xydata().tolist() == [[500, 20]]
    assert axes.containers[0].lines[2][0].get_segments()[0][:, 1].tolist() == pytest.approx([35, 45])
    assert axes.get_xscale() == "log"
    assert axes.get_xlabel() == "images"
    with pytest.raises(ValueError, match="no curves"):
        plots.curves_picture({}, tmp_path / "x.png")


def test_no_display_and_no_pyplot(tmp_path):
    code = (
        "import os, sys; os.environ['MPLBACKEND'] = 'TkAgg'\n"
        "from pathlib import Path; from sslzoo.plots import confusion_picture\n"
        f"confusion_picture([[1, 0], [0, 1]], ['a', 'b'], Path({str(tmp_path / 'x.png')!r}))\n"
        "assert 'matplotlib.pyplot' not in sys.modules and 'tkinter' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_masks_lie_over_their_image(tmp_path, drawn):
    image = Image.fromarray(np.full((20, 30, 3), 100, dtype=np.uint8))
    mask = np.zeros((20, 30), dtype=np.uint8)
    mask[:10], mask[:, :5] = 2, 255
    colours = [(0, 0, 0), (0, 255, 0), (200, 0, 50)]
    cells = [(image, mask), (image, None), (image, mask), (image, mask)]
    captions = ["a.jpg", LONG * 3, "$", "b"]
    plots.overlay_sheet(cells, ["none", "unseen", LONG], colours, tmp_path / "x.png", "title", captions=captions)
    figure = drawn[0]
    shown = figure.axes[0].images[0].get_array()
    assert shown[15, 20].tolist() == [40, 40, 40]
    assert shown[5, 20].tolist() == [160, 40, 70]
    assert shown[5, 2].tolist() == [100, 100, 100]  # what is ignored stays
    assert (figure.axes[1].images[0].get_array() == 100).all()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["none", plots._label(LONG)]
    said = [text for axes in figure.axes for text in axes.texts]
    assert [text.get_text() for text in said][2:] == [r"\$", "b"]
    assert not overlap(said)
    others = [figure.legends[0].get_window_extent(), *(axes.images[0].get_window_extent() for axes in figure.axes[:4])]
    assert not any(text.get_window_extent().overlaps(box) for text in said for box in others)
    with pytest.raises(ValueError, match="one caption an image, got 4 images and 1"):
        plots.overlay_sheet(cells, ["a"], colours, tmp_path / "y.png", captions=["a"])
    with pytest.raises(ValueError, match="got 0 images"):
        plots.overlay_sheet([], ["a"], colours, tmp_path / "y.png")
