"""What a run tells while it goes: the bar, the log, TensorBoard, kNN, and a warning when it collapses."""

import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sslzoo.data import open_images
from sslzoo.modes import evaluating
from sslzoo.transforms import prepare

from .checkpoint import Log
from .monitor import collapse_signs, effective_rank, feature_std, leave_one_out_knn
from .source import Source, open_source
from .views import View

LOOK_IMAGES = 1024  # training images whose features are looked at: enough for a rank of some hundreds, and quick
KNN_IMAGES = 5000
QUIET = {"loss", "encoder_std", "encoder_rank"}  # not (again) in the bar
PATIENCE = 100  # steps: an untrained projector may look collapsed


class CollapseWarning(UserWarning):
    """The run shows a sign of collapse; the message says which."""


class Watch:
    """Watches one run from its main process; in the others it does nothing.

    Args:
        folder: The run's folder.
        source: Training images.
        monitor: Labelled folder for kNN, or None.
        device: Where the encoder is.
        main: Is this the main process?
        tensorboard: Also write event files into folder/tensorboard.
    """

    def __init__(
        self,
        folder: Path,
        source: Source,
        monitor: str | Path | None,
        device: torch.device,
        *,
        main: bool,
        tensorboard: bool,
    ) -> None:
        self.folder, self.source, self.device, self.main, self.tensorboard = folder, source, device, main, tensorboard
        self.labelled = _labelled(Path(monitor), device) if monitor is not None and main else None
        self.warned: set[str] = set()
        self.latest: dict[str, float] = {}
        self.bar: tqdm[Any] | None = None
        self.board: Any = None

    def start(self, step: int, total: int, steps_per_epoch: int, batch_size: int, *, progress: bool) -> None:
        """Begin (or go on) at `step`."""
        self.step, self.steps_per_epoch, self.batch_size = step, steps_per_epoch, batch_size
        self.clock = self.lap_clock = time.monotonic()
        if not self.main:
            return
        self.log_file = Log(self.folder, step)
        self.bar = tqdm(
            total=total, initial=step, unit="step", disable=not progress, file=sys.stderr, dynamic_ncols=True
        )
        if self.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step)

    def lap(self) -> float:
        """Seconds since the last lap."""
        now = time.monotonic()
        seconds, self.lap_clock = now - self.lap_clock, now
        return seconds

    def log(self, step: int, scalars: dict[str, float], embedding: Tensor, lr: float) -> None:
        """A line of the log, the bar's figures, and the check for a collapse."""
        if not self.main:
            return
        now = time.monotonic()
        speed = (step - self.step) * self.batch_size / max(1e-9, now - self.clock)
        rows = embedding[:512]
        std, rank = feature_std(rows), effective_rank(rows)
        self._write(
            step, scalars | {"lr": lr, "feature_std": std, "effective_rank": rank}, images_per_s=round(speed, 1)
        )
        if self.bar is not None:
            shown = {"loss": f"{scalars['loss']:.4f}", "images/s": f"{speed:.0f}", "rank": f"{rank:.1f}"}
            shown |= {k: f"{v:.3f}" for k, v in (scalars | self.latest).items() if k not in QUIET}
            self.bar.set_postfix(shown, refresh=False)
            self.bar.update(step - self.bar.n)
        self.step, self.clock = step, now
        if step >= PATIENCE:
            self._warn(step, collapse_signs(std, rank))

    def look(self, step: int, encoder: nn.Module, config: Mapping[str, Any]) -> None:
        """Spread, rank and, with a labelled folder, kNN of the encoder's features without augmentation.

        Args:
            step: Steps done so far.
            encoder: Images to features.
            config: Its config.json, which says what images it sees.
        """
        start = time.monotonic()
        few = torch.linspace(0, len(self.source) - 1, min(LOOK_IMAGES, len(self.source))).long()
        features = _features(encoder, config, self.source, few, self.device)
        row = {"encoder_std": feature_std(features), "encoder_rank": effective_rank(features)}
        if self.labelled is not None:
            source, labels = self.labelled
            features = _features(encoder, config, source, torch.arange(len(source)), self.device)
            row["knn"] = leave_one_out_knn(features, labels.to(features.device))
        self.latest = row
        self._write(step, row | {"epoch": step / self.steps_per_epoch})
        self.clock += time.monotonic() - start  # looking is not training: keep it out of images/s

    def close(self) -> None:
        """Finish the bar and the event file."""
        if self.bar is not None:
            self.bar.close()
        if self.board is not None:
            self.board.close()

    def _write(self, step: int, row: dict[str, float], **more: float) -> None:
        self.log_file.write({"step": step, **row, **more})
        if self.board is not None:
            for key, value in (row | more).items():
                self.board.add_scalar(key, value, step)

    def _warn(self, step: int, signs: list[str]) -> None:
        for sign in signs:
            kind = sign.split(" ")[0]
            if kind not in self.warned:
                self.warned.add(kind)
                warnings.warn(f"this run seems to collapse: {sign} at step {step}.", CollapseWarning, stacklevel=3)
                self.log_file.write({"step": step, "warning": sign})


def _labelled(folder: Path, device: torch.device) -> tuple[Source, Tensor]:
    """At most KNN_IMAGES readable images of a labelled folder, evenly chosen, and their class numbers."""
    images = open_images(folder)
    if images.labels is None:
        raise ValueError(f"{folder} has no labels: for kNN it needs one sub-folder of images a class.")
    chosen = torch.linspace(0, len(images) - 1, min(KNN_IMAGES, len(images))).long().tolist()
    subset = images.subset(chosen)
    source = open_source(subset, store_size=256, device=device)
    label_of = dict(zip(subset.names, images.labels[chosen], strict=True))
    return source, torch.tensor([int(label_of[name]) for name in source.names])


def _features(
    encoder: nn.Module, config: Mapping[str, Any], source: Source, index: Tensor, device: torch.device
) -> Tensor:
    """(N, D) features of some images, squashed to the encoder's size; the encoder gets its modes back."""
    size = config["pretrained_cfg"]["input_size"][-1]
    view = View(size, scale=(1.0, 1.0), ratio=(1.0, 1.0), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    features = []
    with evaluating(encoder), torch.inference_mode():
        for part in torch.split(index, 256):
            batch = source.fetch(part)
            params = view.sample(batch.sizes, torch.Generator())
            features.append(encoder(prepare(view.apply(batch.images, params), config)).float())
    return torch.cat(features)
