"""Fine-tuning by two processes: each validation image counts once, as the model that is saved has it."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sslzoo
from sslzoo.heads import TASKS
from sslzoo.heads.average_precision import PAD

pytestmark = pytest.mark.slow  # two processes load torch, transformers and three tasks: 40 s of CPU time

NAMES = ["zero", "one"]
# Seven images to validate on, for two processes that take two a step: the last step has one too many
SCRIPT = """
    import sys
    from pathlib import Path
    import torch
    from accelerate import PartialState
    sys.path.insert(0, sys.argv[1])
    from test_finetuning_processes import new, opened
    import sslzoo
    from sslzoo import weights

    def recorded(update):
        def record(self, predictions, targets):
            seen.extend(zip(predictions, targets))
            update(self, predictions, targets)
        return record

    def counted(folder, *rest):
        saved.append(folder)
        write(folder, *rest)

    write, weights.write_folder = weights.write_folder, counted
    for task in sys.argv[3:]:
        model, seen, saved = new(task), [], []
        meter = type(model.meter())
        meter.update = recorded(meter.update)
        data, out = opened(task, Path(sys.argv[2]) / "data.npz"), Path(sys.argv[2]) / task
        report = sslzoo.finetune(
            model, data, data.subset(range(7)), out=out, epochs=1, batch_size=4, lr=0.01, device="cpu",
            num_workers=0, progress=False,
        )
        state = PartialState()
        assert state.num_processes == 2
        torch.save((seen, report.metrics, len(saved)), out / f"seen-{state.process_index}.pt")
    PartialState().destroy_process_group()
"""


def new(task: str) -> Any:
    """A model for zeros and ones."""
    encoder = "byol-resnet18quarter-cifar10"
    if task == "segmentation":
        return sslzoo.segmenter(encoder, classes=["photograph", *NAMES], head="fcn8s", image_size=64)
    if task == "detection":
        return sslzoo.detector(encoder, classes=NAMES, image_size=64, width=32, proposals=16)
    return sslzoo.classifier(encoder, classes=NAMES)


def opened(task: str, path: Path) -> Any:
    """The scenes in a file, marked as a task needs it."""
    with np.load(path) as file:
        images, masks, boxes = file["images"], file["masks"], file["boxes"]
    if task == "segmentation":
        return sslzoo.open_masks((images, masks), classes=["photograph", *NAMES])
    if task == "detection":
        return sslzoo.open_boxes(images, boxes=boxes, labels=[NAMES] * len(images))
    return sslzoo.open_images(images, labels=[NAMES[n % 2] for n in range(len(images))])


@pytest.fixture(scope="module")
def runs(scenes: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of every task by `torchrun` with two CPU processes (gloo)."""
    out = tmp_path_factory.mktemp("runs")
    made = scenes(8)
    np.savez(out / "data.npz", images=made.images, masks=made.masks, boxes=np.stack(made.boxes))
    script = out / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(
        [*command, str(Path(__file__).parent), str(out), *TASKS],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.mark.parametrize("task", TASKS)
def test_two_processes_count_each_image_once(task: str, runs: Path) -> None:
    torch.set_num_threads(1)
    (seen, metrics, saved), (other, others, more) = (
        torch.load(runs / task / f"seen-{rank}.pt", weights_only=True) for rank in (0, 1)
    )
    assert (saved, more) == (1, 0)
    assert metrics == others
    assert len(seen) == len(other) == 7
    model = sslzoo.load_model(runs / task)
    assert model.finetuning["metrics"] == metrics
    samples, meter = model.samples(model.open_validation(opened(task, runs / "data.npz")), None), model.meter()
    for i, (said, wanted) in enumerate(seen):
        with torch.inference_mode():
            _, again, targets = model.validate(**model.collate([samples[i]]))
        meter.update(again, targets)
        same_rows(wanted, targets[0])
        same_rows(said, again[0])
    assert meter.compute() == pytest.approx({k: v for k, v in metrics.items() if k != "loss"}, abs=1e-3)


def same_rows(some: Tensor, others: Tensor) -> None:
    """Equal but for rounding and for boxes that fill up a batch."""
    a, b = (x[x[:, -1] != PAD] if x.ndim == 2 and x.is_floating_point() else x for x in (some, others))
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-2, check_dtype=False)
