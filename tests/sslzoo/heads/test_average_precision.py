"""Average precision: cases that can be worked out by hand."""

import pytest
import torch
from torch import Tensor

from sslzoo.heads.average_precision import PAD, AveragePrecision, packed

BOX, FAR = [10.0, 10.0, 30.0, 30.0], [50.0, 50.0, 60.0, 60.0]


def rows(*boxes: tuple[list[float], float, int]) -> Tensor:
    """A batch of one image: boxes with score (or crowd) and label."""
    return packed(
        [torch.tensor([box for box, _, _ in boxes]).reshape(-1, 4)],
        [torch.tensor([value for _, value, _ in boxes])],
        [torch.tensor([label for _, _, label in boxes], dtype=torch.int64)],
    )


def measured(found: Tensor, true: Tensor) -> dict[str, float]:
    meter = AveragePrecision(["a", "b"])
    meter.update(found, true)
    return meter.compute()


def test_all_right() -> None:
    figures = measured(rows((BOX, 0.9, 0), (FAR, 0.8, 1)), rows((BOX, 0, 0), (FAR, 0, 1)))
    assert figures == pytest.approx({"ap": 1, "ap50": 1, "ap75": 1, "ap/a": 1, "ap/b": 1})


def test_a_wrong_box_that_is_surer_halves_the_precision() -> None:
    figures = measured(rows((FAR, 0.9, 0), (BOX, 0.8, 0)), rows((BOX, 0, 0)))
    assert figures["ap50"] == pytest.approx(0.5)
    assert set(figures) == {"ap", "ap50", "ap75", "ap/a"}  # of class b there is no true box


def test_the_overlap_decides() -> None:
    # 20 x 14 of 20 x 20: an IoU of 0.7 counts at 0.5 to 0.65, and at 0.7 if rounding lets it
    figures = measured(rows(([10, 10, 30, 24.0], 0.9, 0)), rows((BOX, 0, 0)))
    assert (figures["ap50"], figures["ap75"]) == pytest.approx((1, 0))
    assert figures["ap"] in (pytest.approx(0.4), pytest.approx(0.5))


def test_a_crowd_is_neither_right_nor_wrong_to_find() -> None:
    true = rows((BOX, 0, 0), (FAR, 1, 0))
    assert measured(rows((FAR, 0.9, 0), (BOX, 0.8, 0)), true)["ap50"] == pytest.approx(1)
    assert measured(rows((BOX, 0.8, 0)), true)["ap50"] == pytest.approx(1)


def test_batches_of_uneven_images() -> None:
    meter = AveragePrecision(["a", "b"])
    boxes = [torch.tensor([BOX, FAR]), torch.zeros(0, 4)]
    scores, labels = (
        [torch.tensor([0.9, 0.8]), torch.zeros(0)],
        [torch.tensor([0, 0]), torch.zeros(0, dtype=torch.int64)],
    )
    batch = packed(boxes, scores, labels)
    assert batch.shape == (2, 2, 6)
    assert (batch[1] == PAD).all()
    meter.update(batch, packed(boxes, [torch.zeros(2), torch.zeros(0)], labels))
    meter.update(rows(), rows((BOX, 0, 0), (FAR, 0, 0)))  # nothing found: half of four boxes are
    assert rows().shape == (1, 1, 6)
    assert meter.compute()["ap50"] == pytest.approx(0.505, abs=0.01)  # COCO reads the curve at 101 places


def test_no_true_box_at_all_is_zero() -> None:
    assert measured(rows((BOX, 0.9, 0)), rows())["ap"] == 0
