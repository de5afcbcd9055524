"""COCO's average precision of boxes, counted by pycocotools through torchmetrics.

Boxes of a batch travel as one tensor (B, n, 6), a row a box: left, top, right, bottom, score (of a true box: 1 for a
crowd, else 0), class number. Images with fewer boxes are filled up with rows of `PAD`, as transformers' Trainer does
where processes differ.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

PAD = -100.0


def packed(boxes: Sequence[Tensor], values: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
    """Boxes of a batch of images as one tensor (B, n, 6); n is 1 where no image has a box.

    Args:
        boxes: One (n, 4) an image.
        values: One (n,) an image: scores, or whether it is a crowd.
        labels: One (n,) an image.
    """
    rows = [
        torch.cat([box, value[:, None].to(box), label[:, None].to(box)], 1)
        for box, value, label in zip(boxes, values, labels, strict=True)
    ]
    rows.append(rows[0].new_full((1, 6), PAD))  # so that there is a row
    return pad_sequence(rows, batch_first=True, padding_value=PAD)[:-1]


class AveragePrecision:
    """Collects boxes, and counts them with COCO's own code.

    Args:
        classes: Names of the classes.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        from torchmetrics.detection import MeanAveragePrecision  # takes seconds to import

        self.classes = list(classes)
        self.metric = MeanAveragePrecision(class_metrics=True, backend="pycocotools")

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Add a batch: found and true boxes, as `packed` makes them."""
        found, true = _unpacked(predictions), _unpacked(targets)
        self.metric.update(
            [{"boxes": rows[:, :4], "scores": rows[:, 4], "labels": rows[:, 5].long()} for rows in found],
            [{"boxes": rows[:, :4], "iscrowd": rows[:, 4].long(), "labels": rows[:, 5].long()} for rows in true],
        )

    def compute(self) -> dict[str, float]:
        """Average precision, 0 to 1: the mean over IoU from 0.5 to 0.95, at 0.5, at 0.75, and of each class.

        Classes that no true box has are left out; so COCO defines it.
        """
        result = self.metric.compute()
        figures = {name: max(float(result[key]), 0.0) for name, key in _NAMES.items()}  # -1 stands for "no true box"
        numbers, values = result["classes"].reshape(-1).tolist(), result["map_per_class"].reshape(-1).tolist()
        return figures | {
            f"ap/{self.classes[number]}": value for number, value in zip(numbers, values, strict=True) if value >= 0
        }


_NAMES = {"ap": "map", "ap50": "map_50", "ap75": "map_75"}


def _unpacked(batch: Tensor) -> list[Tensor]:
    return [rows[rows[:, 5] >= 0] for rows in batch.cpu().float()]
