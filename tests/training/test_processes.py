"""Two processes give what one gives on the same global batch: same losses, same weights, to float error."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from sslzoo_training import checkpoint, pretrain
from sslzoo_training.method import find_method, list_methods, method_settings

SETTINGS: dict[str, Any] = {
    "recipe": "cifar10_cpu",
    "arch": "resnet18quarter",
    # Batch norm over a few values is chaotic: at 32 px, 8 images a batch, an error of 1e-7 grew twentyfold a step. So
    # more pixels, more images and a small step; a missing SyncBN or a gradient of the wrong scale shows all the same.
    "image_size": 64,
    "batch_size": 12,
    "epochs": 2,
    "lr": 0.05,
    "precision": "no",  # bf16 would hide what is compared behind its rounding
    "log_every": 1,
    "device": "cpu",
    "progress": False,
}


def small(method: str) -> dict[str, Any]:
    return SETTINGS | {k: 32 for k in method_settings(find_method(method)) if k.endswith("dim")}


BOTH = """
    import sys
    import torch
    from accelerate import PartialState
    from sslzoo_training import pretrain
    torch.set_num_threads(1)
    data, out, runs = sys.argv[1], sys.argv[2], eval(sys.argv[3])
    for method, settings in runs.items():
        assert pretrain(method, data, f"{out}/{method}", **settings).finished
    assert PartialState().num_processes == 2
    PartialState().destroy_process_group()
"""


@pytest.fixture(scope="module")
def pair(photo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of every method by `accelerate launch` with two CPU processes (gloo)."""
    out = tmp_path_factory.mktemp("two")
    script = out / "both.py"
    script.write_text(textwrap.dedent(BOTH))
    runs = {method: small(method) for method in list_methods()}
    # --multi_gpu is accelerate's word for "start the processes yourself": --cpu would ask for an MPI launcher. What
    # they run on is the run's own business: device="cpu", and so gloo.
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        "0",
    ]
    done = subprocess.run(
        [*launch, str(script), str(photo_folder), str(out), repr(runs)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.mark.parametrize("method", list_methods())
def test_two_processes_equal_one(method: str, pair: Path, photo_folder: Path, tmp_path: Path) -> None:
    assert pretrain(method, photo_folder, tmp_path / "one", **small(method)).finished
    one, two = (checkpoint.read_log(run) for run in (tmp_path / "one", pair / method))
    assert [row["step"] for row in one] == [row["step"] for row in two]
    curve = [[row["loss"] for row in rows if "loss" in row] for rows in (one, two)]
    assert curve[0] == pytest.approx(curve[1], rel=1e-4)
    first, second = (checkpoint.load(run)["method"] for run in (tmp_path / "one", pair / method))  # type: ignore[index]
    assert first.keys() == second.keys()
    for key in first:
        torch.testing.assert_close(first[key], second[key], rtol=1e-3, atol=1e-4, msg=lambda m, key=key: f"{key}: {m}")
