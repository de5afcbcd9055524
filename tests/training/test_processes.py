"""Two processes give what one gives on the same global batch: same losses, same weights."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sslzoo_training import checkpoint, loop
from sslzoo_training.method import find_method, list_methods, method_settings
from sslzoo_training.views import Params, Part, View

SETTINGS: dict[str, Any] = {
    "recipe": "cifar10_cpu",
    "arch": "resnet18quarter",
    "image_size": 32,
    "batch_size": 8,
    "epochs": 2,
    "precision": "no",
    "monitor_every": 100,
    "log_every": 1,
    "device": "cpu",
    "progress": False,
}


def in_double_precision() -> None:
    """Let this process train in float64, after the views.

    With batch norm over 8 images float32's rounding grows a hundredfold a step, and hides what is compared. What does
    not depend on the number of processes agrees to many digits in float64.
    """
    build, step, apply = loop.Run._build, loop.Run._step, View.apply
    single, double = torch.Tensor.float, torch.Tensor.double

    def double_build(run: loop.Run) -> None:
        torch.set_default_dtype(torch.float64)
        build(run)
        torch.set_default_dtype(torch.float32)
        run.model.register_forward_pre_hook(double_draws)

    def double_draws(_: nn.Module, inputs: tuple[list[torch.Tensor], torch.Tensor]) -> Any:
        return [x.double() if x.is_floating_point() else x for x in inputs[0]], inputs[1]

    def double_step(run: loop.Run, batches: Any) -> Any:
        torch.Tensor.float = double  # type: ignore[method-assign]
        try:
            return step(run, batches)
        finally:
            torch.Tensor.float = single  # type: ignore[method-assign]

    def single_apply(view: View, images: torch.Tensor, params: Params, part: Part) -> torch.Tensor:
        torch.Tensor.float, before = single, torch.Tensor.float  # type: ignore[method-assign]
        try:
            return apply(view, images, params, part).double()
        finally:
            torch.Tensor.float = before  # type: ignore[method-assign]

    loop.Run._build, loop.Run._step = double_build, double_step  # type: ignore[method-assign]
    View.apply = single_apply  # type: ignore[method-assign]


# method, and what labels come from
RUNS = [
    run for name in list_methods()
    for run in ([f"{name}-pass", f"{name}-steps"] if "labels_from" in method_settings(find_method(name)) else [name])
]  # fmt: skip


def small(run: str) -> dict[str, Any]:
    method, _, labels_from = run.partition("-")
    names = method_settings(find_method(method))
    heads = {k: 32 for k in names if k.endswith("dim")}
    heads |= {k: value for k, value in {"clusters": 4, "reassign": 1}.items() if k in names}
    return SETTINGS | {"method": method} | heads | ({"labels_from": labels_from} if labels_from else {})


SCRIPT = """
    import sys
    from accelerate import PartialState
    sys.path.insert(0, sys.argv[1])
    from test_processes import in_double_precision, loop, small
    in_double_precision()
    world, data, out, runs = int(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5:]
    for run in runs:
        assert loop.pretrain(data=data, out=f"{out}/{world}/{run}", **small(run)).finished
    assert PartialState().num_processes == world
    PartialState().destroy_process_group()
"""


@pytest.fixture(scope="module")
def runs(photo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of every method by one process, and by `accelerate launch` with two CPU processes (gloo)."""
    out = tmp_path_factory.mktemp("runs")
    script = out / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    # --multi_gpu is accelerate's word for "start the processes yourself": --cpu would ask for an MPI launcher. What
    # they run on is the run's own business: device="cpu", and so gloo.
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
              "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]  # fmt: skip
    for world, how in ((1, []), (2, launch)):
        where = [str(Path(__file__).parent), str(world), str(photo_folder), str(out)]
        done = subprocess.run(
            [sys.executable, *how, str(script), *where, *RUNS],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.mark.parametrize("run", RUNS)
def test_two_processes_equal_one(run: str, runs: Path) -> None:
    one, two = (checkpoint.read_log(runs / world / run) for world in "12")
    assert [row["step"] for row in one] == [row["step"] for row in two]
    curve = [[row["loss"] for row in rows if "loss" in row] for rows in (one, two)]
    assert len(curve[0]) == 6
    assert curve[0] == pytest.approx(curve[1], rel=1e-6, abs=1e-8)  # the log rounds to float32
    first, second = (checkpoint.load(runs / world / run)["method"] for world in "12")  # type: ignore[index]
    assert first.keys() == second.keys()
    for key in first:
        torch.testing.assert_close(first[key], second[key], rtol=1e-9, atol=1e-11, msg=lambda m, key=key: f"{key}: {m}")
