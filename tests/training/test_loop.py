"""The loop: schedules, resuming bit for bit after any kill, signals, collapse, non-finite losses, finished runs."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import sslzoo
from sslzoo.data import EmptyDatasetError
from sslzoo_training import Outcome, checkpoint, loop, pretrain, source
from sslzoo_training.checkpoint import CheckpointError
from sslzoo_training.method import find_method, list_methods, method_settings
from sslzoo_training.recipe import RecipeError, Settings
from sslzoo_training.recorded import LABELS_FROM
from sslzoo_training.watch import CollapseWarning

THIN = {"arch": "resnet18quarter", "image_size": 32, "batch_size": 8, "epochs": 2, "precision": "no", "log_every": 1}


def small(method: str) -> dict[str, Any]:
    """Settings that make a method's heads narrow, and let it do in each epoch what it does now and then."""
    names = method_settings(find_method(method))
    heads = {k: 32 for k in names if k.endswith("dim")}
    return heads | {k: value for k, value in {"clusters": 4, "reassign": 1}.items() if k in names}


def train(data: Path, out: Path, method: str = "byol", **more: Any) -> Outcome:
    return pretrain(
        method, data, out, recipe="cifar10_cpu", device="cpu", progress=False, **(THIN | small(method) | more)
    )


def weights(run: Path) -> dict[str, torch.Tensor]:
    state = checkpoint.load(run)
    assert state is not None
    return state["method"]


def assert_same(a: Path, b: Path) -> None:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def losses(run: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in checkpoint.read_log(run) if "loss" in row]


def test_lr_warms_up_and_falls_to_zero_along_a_cosine() -> None:
    factors = [loop.lr_factor(step, 100, 10) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == 1
    assert factors[55] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0)
    assert all(a >= b for a, b in pairwise(factors[10:]))


def test_a_method_gets_the_parts_of_views_that_it_asks_for(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = find_method("mutual_information")
    forward, shapes = kind.forward, set()

    def seen(self: Any, views: list[torch.Tensor], index: torch.Tensor) -> dict[str, torch.Tensor]:
        shapes.update(view.shape for view in views)
        return forward(self, views, index)

    monkeypatch.setattr(kind, "forward", seen)
    train(photo_folder, tmp_path / "run", "mutual_information", split="rows", epochs=1)
    assert shapes == {(8, 3, 16, 32)}


def test_an_epoch_visits_every_image_once_and_a_small_set_fills_a_batch() -> None:
    order = loop.epoch_order(10, 4, seed=0, epoch=0)
    assert len(order) == 8
    assert len(set(order.tolist())) == 8
    assert not torch.equal(order, loop.epoch_order(10, 4, seed=0, epoch=1))
    assert not torch.equal(order, loop.epoch_order(10, 4, seed=1, epoch=0))
    few = loop.epoch_order(3, 8, seed=0, epoch=0)
    assert len(few) == 8
    assert set(few.tolist()) == {0, 1, 2}
    assert loop.epoch_order(1, 4, seed=0, epoch=0).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("optimizer", ["sgd", "lars", "adam"])
def test_norms_and_biases_get_no_decay_and_the_target_no_optimizer(optimizer: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    net[2].requires_grad_(False)
    net.constant_lr = lambda: (net[0],)  # type: ignore[assignment]
    net.without_momentum = lambda: ()  # type: ignore[assignment]
    made = loop.make_optimizer(net, Settings(optimizer=optimizer, weight_decay=0.1))  # type: ignore[arg-type]
    groups = {(g["weight_decay"], g["constant_lr"]): len(g["params"]) for g in made.param_groups}
    assert groups == {(0.1, True): 1, (0.0, True): 1, (0.0, False): 2}


def test_lars_moves_a_layer_in_proportion_to_its_norm_and_norms_by_plain_sgd() -> None:
    net = nn.Sequential(nn.Linear(3, 3))
    net.constant_lr = net.without_momentum = lambda: ()  # type: ignore[assignment]
    before = net[0].weight.detach().clone(), net[0].bias.detach().clone()
    settings = Settings(optimizer="lars", lr=0.5, trust_coefficient=0.01, weight_decay=0.1)
    optimizer = loop.make_optimizer(net, settings)  # type: ignore[arg-type]
    w, g = before[0], torch.full((3, 3), 7.0)
    net[0].weight.grad, net[0].bias.grad = g.clone(), torch.full((3,), 7.0)
    optimizer.step()
    ratio = 0.01 * w.norm() / (g.norm() + 0.1 * w.norm())
    torch.testing.assert_close(net[0].weight.detach(), w - 0.5 * ratio * (g + 0.1 * w))
    torch.testing.assert_close(net[0].bias.detach(), before[1] - 0.5 * 7.0)


@pytest.mark.parametrize(
    ("method", "more"),
    [
        (name, more) for name in list_methods() for more in
        ([{"labels_from": k} for k in LABELS_FROM] if "labels_from" in method_settings(find_method(name)) else [{}])
    ],
)  # fmt: skip
def test_a_stopped_run_resumes_to_the_same_weights_bit_for_bit(
    method: str, more: dict[str, str], photo_folder: Path, tmp_path: Path
) -> None:
    more = more | {"precision": "bf16"}
    whole = train(photo_folder, tmp_path / "whole", method, **more)
    assert whole.finished
    stopped = train(photo_folder, tmp_path / "parts", method, time_limit=0.0, **more)
    assert (stopped.finished, stopped.step) == (False, 1)
    assert train(photo_folder, tmp_path / "parts", method, resume=True, **more).finished
    assert_same(tmp_path / "whole", tmp_path / "parts")
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    files = [(tmp_path / run / "model.safetensors").read_bytes() for run in ("whole", "parts")]
    assert files[0] == files[1]
    encoder = sslzoo.load(tmp_path / "whole")
    assert encoder(torch.zeros(1, *encoder.input_size)).shape == (1, 128)


KILLED = """
    import os, signal, sys
    import torch
    torch.set_num_threads(1)
    from sslzoo_training import checkpoint, loop, pretrain
    data, out, settings = sys.argv[1], sys.argv[2], eval(sys.argv[3])
    step, write = loop.Run._step, torch.save
    def dying_step(run, batches):
        if run.step == die_at: os.kill(os.getpid(), signal.SIGKILL)
        return step(run, batches)
    def dying_write(state, file):
        if state["step"] == die_writing:
            file.write(b"half a checkpoint"); file.flush(); os.kill(os.getpid(), signal.SIGKILL)
        write(state, file)
    loop.Run._step, torch.save = dying_step, dying_write
    for die_at, die_writing in ((0, -1), (2, -1), (-1, 4), (5, -1)):
        child = os.fork()
        if child == 0:
            pretrain("byol", data, out, recipe="cifar10_cpu", device="cpu", progress=False, resume=True, **settings)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
"""


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums depend on how many threads share them, and a process that forks must not have started any."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_a_run_killed_at_any_step_or_while_saving_resumes_bit_for_bit(photo_folder: Path, tmp_path: Path) -> None:
    settings = THIN | small("byol") | {"checkpoint_every": 1}
    train(photo_folder, tmp_path / "whole", **settings)
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(photo_folder), str(tmp_path / "killed"), repr(settings)],
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert checkpoint.load(tmp_path / "killed")["step"] == 5  # type: ignore[index]
    assert train(photo_folder, tmp_path / "killed", resume=True, **settings).finished
    assert_same(tmp_path / "whole", tmp_path / "killed")
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops(
    number: signal.Signals, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = loop.Run._step

    def signalled(run: loop.Run, batches: Any) -> Any:
        if run.step == 1:
            os.kill(os.getpid(), number)
        return step(run, batches)

    monkeypatch.setattr(loop.Run, "_step", signalled)
    before = signal.getsignal(number)
    outcome = train(photo_folder, tmp_path / "run")
    assert (outcome.finished, outcome.step, outcome.signal) == (False, 2, number)
    assert checkpoint.load(tmp_path / "run")["step"] == 2  # type: ignore[index]
    assert signal.getsignal(number) is before


def test_a_checkpoint_survives_a_failed_write_and_a_damaged_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, {"step": 1})

    def full(state: object, file: Any) -> None:
        file.write(b"half")
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OSError, match="No space"):
            checkpoint.save(tmp_path, {"step": 2})
    assert checkpoint.load(tmp_path) == {"step": 1}
    (tmp_path / checkpoint.CHECKPOINT).write_bytes(b"half")
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt cannot be read"):
        checkpoint.load(tmp_path)


def test_an_existing_run_needs_resume_and_the_same_settings_and_data(photo_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(photo_folder, run, time_limit=0.0)
    with pytest.raises(CheckpointError, match="already holds a run"):
        train(photo_folder, run)
    with pytest.raises(CheckpointError, match=r"tau was 0\.99, now 0\.5"):
        train(photo_folder, run, resume=True, tau=0.5)
    with pytest.raises(CheckpointError, match=r"24 images.* now has 12"):
        train(photo_folder / "china", run, resume=True)


def test_accumulated_parts_must_divide_the_batch_and_still_train(photo_folder: Path, tmp_path: Path) -> None:
    outcome = train(photo_folder, tmp_path / "run", accumulate=2, epochs=1)
    assert outcome.finished
    assert outcome.total == 3
    with pytest.raises(RecipeError, match="cannot be cut"):
        train(photo_folder, tmp_path / "other", accumulate=3)


def test_a_collapsing_run_warns_and_says_which_sign_it_saw(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sslzoo_training.watch.PATIENCE", 2)
    step = loop.Run._step

    def constant(run: loop.Run, batches: Any) -> Any:
        return step(run, batches) | {"embedding": torch.ones(8, 16)}

    monkeypatch.setattr(loop.Run, "_step", constant)
    with pytest.warns(CollapseWarning) as caught:
        train(photo_folder, tmp_path / "run")
    messages = [str(w.message) for w in caught if w.category is CollapseWarning]
    assert len(messages) == 2  # once a sign, not once a step
    assert any("feature std 0.000" in m and "step 2" in m for m in messages)
    assert any("effective rank 1.0" in m for m in messages)
    assert sum("warning" in row for row in checkpoint.read_log(tmp_path / "run")) == 2


def test_a_loss_that_is_not_finite_stops_with_step_and_rate(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = loop.Run._step

    def broken(run: loop.Run, batches: Any) -> Any:
        out = step(run, batches)
        return out | {"loss": out["loss"] * (math.nan if run.step == 2 else 1)}

    monkeypatch.setattr(loop.Run, "_step", broken)
    with pytest.raises(loop.NonFiniteLossError, match=r"nan at step 2 of 6, lr 0\.00.*smaller lr"):
        train(photo_folder, tmp_path / "run", checkpoint_every=1)
    assert checkpoint.load(tmp_path / "run")["step"] == 1  # type: ignore[index]


def test_the_log_has_loss_rate_std_rank_and_knn(photo_folder: Path, tmp_path: Path) -> None:
    train(photo_folder, tmp_path / "run", "rotation", monitor=photo_folder)
    rows = checkpoint.read_log(tmp_path / "run")
    steps = [row for row in rows if "loss" in row]
    assert len(steps) == 6
    assert {"lr", "images_per_s", "feature_std", "effective_rank", "accuracy"} <= steps[0].keys()
    looks = [row for row in rows if "knn" in row]
    assert [row["epoch"] for row in looks] == [1.0, 2.0]
    assert all(0 <= row["knn"] <= 1 and row["encoder_rank"] >= 1 for row in looks)


def test_monitoring_does_not_change_the_weights(photo_folder: Path, tmp_path: Path) -> None:
    train(photo_folder, tmp_path / "watched", monitor=photo_folder, epochs=1)
    train(photo_folder, tmp_path / "alone", epochs=1)
    assert_same(tmp_path / "watched", tmp_path / "alone")


def test_monitor_needs_labels(photo_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no labels"):
        train(photo_folder, tmp_path / "run", monitor=photo_folder / "china")


def test_tensorboard_gets_the_scalars(photo_folder: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(photo_folder, tmp_path / "run", "rotation", tensorboard=True, epochs=1)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]


def test_views_are_small_in_the_early_part_and_of_full_size_after_it(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides: list[tuple[int, ...]] = []
    forward = find_method("byol").forward

    def watched(self: Any, views: list[torch.Tensor], index: torch.Tensor) -> dict[str, torch.Tensor]:
        sides.append(tuple(view.shape[-1] for view in views))
        return forward(self, views, index)

    monkeypatch.setattr(find_method("byol"), "forward", watched)
    outcome = train(photo_folder, tmp_path / "run", epochs=4, early_size=24, early_part=0.5)
    half = outcome.total // 2
    assert half > 0
    assert sides == [(24, 24)] * half + [(32, 32)] * (outcome.total - half)
    assert sslzoo.load(tmp_path / "run").input_size == (3, 32, 32)


@pytest.mark.parametrize(
    "settings", [{"early_size": 16}, {"early_part": 0.5}, {"early_size": 32, "early_part": 0.5}, {"early_part": 1.0}]
)
def test_half_a_choice_of_early_views_is_refused(settings: dict[str, Any], photo_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="early_"):
        train(photo_folder, tmp_path / "run", **settings)


def test_seeds_decide_everything(photo_folder: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(photo_folder, tmp_path / name, "rotation", epochs=1, seed=seed)
    assert_same(tmp_path / "a", tmp_path / "b")
    assert losses(tmp_path / "a") != losses(tmp_path / "c")


def test_broken_files_are_listed_one_image_trains_and_none_is_an_error(photos: np.ndarray, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    with pytest.raises(EmptyDatasetError):
        train(data, tmp_path / "empty")
    Image.fromarray(photos[0]).save(data / "good.png")
    (data / "broken.png").write_bytes(b"not a picture")
    (data / "notes.txt").write_text("hello")
    assert train(data, tmp_path / "run", "rotation", epochs=1).finished
    listed = (tmp_path / "run" / "skipped.csv").read_text()
    assert "broken.png" in listed
    assert "notes.txt" in listed


def test_damage_met_while_streaming_is_listed_at_the_end_and_kept_by_the_next_part(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "available_memory", lambda: 0)
    data = tmp_path / "data"
    shutil.copytree(photo_folder, data)
    broken = data / "flower" / "01.png"
    broken.write_bytes(broken.read_bytes()[:-900])  # the header is whole: only decoding finds it
    run = tmp_path / "run"
    stopped = train(data, run, "rotation", epochs=1, time_limit=0)
    assert not stopped.finished
    train(data, run, "rotation", epochs=1, resume=True)
    assert "flower/01.png,image file is truncated" in (run / "skipped.csv").read_text()
    train(data, run, "rotation", epochs=1, resume=True)  # nothing left to do, so nothing is met
    assert "flower/01.png,image file is truncated" in (run / "skipped.csv").read_text()


def test_arrays_train_as_folders_do(photos: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "photos.npy", photos)
    np.savez(tmp_path / "photos.npz", images=photos, labels=np.arange(24) % 2)
    for suffix in ("npy", "npz"):
        assert train(tmp_path / f"photos.{suffix}", tmp_path / suffix, "rotation", epochs=1).finished
    assert_same(tmp_path / "npy", tmp_path / "npz")


@pytest.mark.parametrize("arch", ["convnext_atto", "vit_tiny_patch16_224"])
def test_other_backbones_train(arch: str, photos: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "photos.npy", photos[:2])
    size = 224 if "vit" in arch else 32
    more = {"arch": arch, "image_size": size, "batch_size": 2, "epochs": 1, "store_size": 40}
    assert train(tmp_path / "photos.npy", tmp_path / "run", "simsiam", **more).finished
    assert sslzoo.load(tmp_path / "run").arch == arch


def test_a_finished_run_says_what_ran(photo_folder: Path, tmp_path: Path) -> None:
    train(photo_folder, tmp_path / "run", "rotation", epochs=1, seed=3)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    block = config["sslzoo"]
    assert block["method"] == "rotation"
    assert block["dataset"] == "photos"
    assert block["recipe"]["seed"] == 3
    assert block["run"]["images"] == 24
    assert block["run"]["steps"] == 3
    assert config["pretrained_cfg"]["input_size"] == [3, 32, 32]
    assert "rotation" in (tmp_path / "run" / "README.md").read_text()


def test_command_line(photo_folder: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from sslzoo_training.__main__ import app

    base = ["pretrain", "rotation", "--data", str(photo_folder), "--recipe", "cifar10_cpu", "--image-size", "32",
            "--out", str(tmp_path / "run"), "--epochs", "1", "batch_size=8", "precision=no"]  # fmt: skip
    stopped = CliRunner().invoke(app, [*base, "--time-limit", "0s"])
    assert stopped.exit_code == 0, stopped.output
    assert "stopped at step 1 of 3" in stopped.output
    finished = CliRunner().invoke(app, [*base, "--resume"])
    assert "finished" in finished.output
    wrong = CliRunner().invoke(app, [*base, "--resume", "epoch=3"])
    assert wrong.exit_code == 1
    assert "did you mean epochs" in wrong.output


@pytest.mark.parametrize(("text", "seconds"), [("9m", 540), ("1h30m", 5400), ("45s", 45), ("90", 90), ("0.5h", 1800)])
def test_durations(text: str, seconds: float) -> None:
    from sslzoo_training.__main__ import parse_duration

    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "m9", "9x"])
def test_wrong_durations(text: str) -> None:
    from sslzoo_training.__main__ import parse_duration

    with pytest.raises(ValueError, match="9m"):
        parse_duration(text)
