import cProfile
import importlib.util
import os
import pstats
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sslzoo_evaluations.speed import detection, embed, finetune, methods, pretrain, startup, steps
from sslzoo_evaluations.speed.measure import ChildError, Cost, Spread, confined, run_child

BURN = "import time\nwhile time.process_time() < {seconds}: pass"


def test_spread():
    spread = Spread.of([3.0, 1.0, 2.25])
    assert spread == Spread(2.25, 1.0, 3.0)
    assert spread.show(1) == "2.2 (1.0–3.0)"


def test_child_cost_counts_grandchildren_and_not_sleep():
    burn = BURN.format(seconds=0.3)
    code = (
        f"import subprocess, sys, time; subprocess.run([sys.executable, '-c', {burn!r}]); time.sleep(0.8); print('hi')"
    )
    cost, output = run_child([sys.executable, "-c", code])
    idle, _ = run_child([sys.executable, "-c", ""])
    assert output == "hi\n"
    assert 0.28 < (cost - idle).cpu < 0.9
    assert cost.wall > 1.0


def test_failed_child_is_an_error_with_its_last_words():
    with pytest.raises(ChildError, match="no such luck"):
        run_child([sys.executable, "-c", "raise SystemExit('no such luck')"])


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no CPU affinity")
def test_confined_binds_children_and_gives_back():
    before = os.sched_getaffinity(0)
    with confined(1):
        _, cpus = run_child([sys.executable, "-c", "import os; print(len(os.sched_getaffinity(0)))"])
    assert int(cpus) == 1
    assert os.sched_getaffinity(0) == before


def test_startup_sees_torch_in_a_fresh_process():
    assert startup.start("import sys; sys.modules['torch'] = None")[1]
    cost, torch = startup.start("import sslzoo")
    assert not torch
    assert 0 < cost.cpu < cost.wall + 0.5
    late = startup.row("x", [Cost(0.1, 0.3)] * 3, torch=False, most=0.2)
    heavy = startup.row("x", [Cost(0.1, 0.1)] * 3, torch=True, most=0.2)
    fine = startup.row("x", [Cost(0.1, 0.1), Cost(0.1, 0.1), Cost(9.0, 9.0)], torch=False, most=0.2)
    assert [line.endswith("MISSED") for line in (late, heavy, fine)] == [True, True, False]


def test_job_from_photographs(tmp_path):
    job = pretrain.make_job(None, tmp_path, steps=2, batch_size=4)
    names = sorted(path.name for path in job.long.iterdir())
    assert len(names) == 12
    assert job.images == 8
    assert len(list(job.short.iterdir())) == 4
    pixels = [np.asarray(Image.open(job.long / name)) for name in names]
    assert {image.shape for image in pixels} == {(32, 32, 3)}
    assert len({image.tobytes() for image in pixels}) == 12


def test_job_from_a_folder(tmp_path):
    for i in range(6):
        folder = tmp_path / "data" / f"class{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / f"{i}.png")
    job = pretrain.make_job(tmp_path / "data", tmp_path / "job", steps=1, batch_size=3)
    assert len(list(job.long.iterdir())) == 6
    with pytest.raises(ValueError, match="has 6 images, 9 are needed"):
        pretrain.make_job(tmp_path / "data", tmp_path / "other", steps=2, batch_size=3)


def test_table_is_relative_to_the_first_contender():
    costs = {"theirs": [Cost(8.0, 4.0), Cost(12.0, 6.0), Cost(10.0, 5.0)], "ours": [Cost(4.0, 2.0)] * 3}
    header, theirs, ours = pretrain.table("byol", 1000, costs).splitlines()
    assert header.startswith("byol")
    assert theirs.split() == ["theirs", "10.00", "(8.00–12.00)", "200", "(167–250)", "1.00"]
    assert ours.split() == ["ours", "4.00", "(4.00–4.00)", "500", "(500–500)", "0.40"]


def test_seconds_in_finds_a_function_by_file_and_name(tmp_path):
    profile = cProfile.Profile(time.process_time)
    profile.runcall(_outer)
    stats = pstats.Stats(profile)
    assert 0.1 <= pretrain.seconds_in(stats, "test_speed.py", "_inner") < 0.3
    assert pretrain.seconds_in(stats, "test_speed.py", "_outer") >= 0.2
    with pytest.raises(LookupError, match="_gone"):
        pretrain.seconds_in(stats, "test_speed.py", "_gone")


def _outer() -> None:
    _inner()
    _burn()


def _inner() -> None:
    _burn()


def _burn() -> None:
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass


def test_the_profile_looks_for_functions_that_exist():
    # found by source and not by import: this test must not be slow, and evaluations do not know training
    folder = Path(importlib.util.find_spec("sslzoo_training").origin).parent
    for file, function in [*methods.OUTSIDE, *methods.PREPARED, ("loop.py", "_step"), ("loop.py", "train")]:
        assert f"    def {function}(" in (folder / file).read_text(), (file, function)


def test_methods_are_listed_without_importing_them():
    listed = methods.list_methods()
    assert {"byol", "simsiam", "rotation"} <= set(listed)
    assert "sslzoo_evaluations" not in listed
    assert not any(name.startswith("_") for name in listed)
    assert {name for name in listed if methods.labels_images(name)} == {"deepcluster", "sela"}


def test_a_step_beside_its_bare_form(monkeypatch, tmp_path):
    cumulative = {"train": 13.0, "save": 1.0, "look": 2.0, "_step": 9.5, "_prepare": 0.5, "_views": 1.5, "loader": 0.5}
    monkeypatch.setattr(methods, "seconds_in", lambda stats, file, function: stats[function])
    monkeypatch.setattr(methods, "calls_of", lambda stats, file, function: {"_step": 20}[function])
    step = methods.Step.of(cumulative)
    assert step == methods.Step(whole=10.0, bare=7.0, labels=0.5, steps=20)
    long = methods.Step(whole=10.0, bare=8.0, labels=1.5, steps=1500)
    short = methods.Step(whole=4.0, bare=4.0, labels=0.5, steps=500)
    monkeypatch.setattr(methods, "profile", lambda method, folder, *_: long if folder.name == "long" else short)
    job = pretrain.Job(tmp_path / "long", tmp_path / "short", images=10, batch_size=1)
    assert methods.measure("byol", job, "cifar10_cpu") == methods.Figures(bare=4.0, ratio=1.5, labels=0.25)


def test_a_row_of_methods_has_medians_and_a_verdict():
    figures = [methods.Figures(*f) for f in ((4.0, 1.5, 0.2), (3.0, 1.2, 0.1), (5.0, 1.6, 0.3))]
    assert methods.row("byol", figures).split() == [
        "byol", "4.00", "(3.00–5.00)", "1.50", "(1.20–1.60)", "0.20", "MISSED",
    ]  # fmt: skip
    assert not methods.row("byol", figures[1:2]).endswith("MISSED")


def test_steps_are_compared_with_the_first_contender():
    costs = {"theirs": [10.0, 12.0, 11.0], "ours": [12.0, 99.0, 12.1]}
    theirs, ours, goal = steps.table(costs, goal=1.1).splitlines()
    assert theirs.split() == ["theirs", "11.0", "(10.0–12.0)", "1.00"]
    assert ours.split() == ["ours", "12.1", "(12.0–99.0)", "1.10"]
    assert goal == "goal: at most 1.1 x theirs: met"
    assert steps.table(costs, goal=1.09).endswith("MISSED")


def test_contenders_take_turns(capsys):
    turns = []
    told = steps.options("", image_size=8, batch_size=2, repeats=2).parse_args(["--bf16"])
    measures = {name: lambda name=name: turns.append(name) or 1.0 for name in ("theirs", "ours")}
    steps.compare(measures, told, "a network", goal=1.0)
    assert turns == ["theirs", "ours", "theirs", "ours"]
    assert "a network at 8 px, batch 2, bf16; CPU ms a step, median of 2" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("benchmark", [finetune, detection])
def test_steps_end_to_end(benchmark, capsys):
    words = ["--steps", "1", "--repeats", "1", "--image-size", "64", "--batch-size", "4"]
    assert benchmark.main(words) == 0
    assert "goal: at most" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("lightly") is None, reason="needs the extra [bench]")
@pytest.mark.parametrize("method", ["byol", "simsiam"])
def test_pretrain_end_to_end(method, capsys):
    assert pretrain.main(["--methods", method, "--repeats", "1", "--steps", "2", "--batch-size", "16"]) == 0
    output = capsys.readouterr().out
    for name in ("lightly, float32", "sslzoo, bf16", "augmentation in sslzoo"):
        assert name in output


@pytest.mark.slow
def test_methods_end_to_end(capsys):
    assert methods.main(["--methods", "rotation", "--repeats", "1", "--steps", "3", "--batch-size", "16"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("rotation")


def test_embed_table_is_relative_to_the_first_contender():
    costs = {"theirs": [Cost(8.0, 4.0), Cost(12.0, 6.0), Cost(10.0, 5.0)], "ours": [Cost(5.0, 2.0)] * 3}
    header, theirs, ours = embed.table("predict", 1000, costs).splitlines()
    assert header.startswith("predict")
    assert theirs.split() == ["theirs", "10.00", "(8.00–12.00)", "200.0", "(166.7–250.0)", "1.00", "1.00"]
    assert ours.split() == ["ours", "5.00", "(5.00–5.00)", "500.0", "(500.0–500.0)", "0.50", "2.50"]


def test_embedding_contenders_must_give_the_same(monkeypatch):
    numbers = iter([np.ones((2, 3)), np.ones((2, 3)) + 1e-7, np.ones((2, 3)) * 1.1])
    monkeypatch.setattr(embed.Job, "cost", lambda *_: (Cost(1, 1), next(numbers)))
    job = embed.Job({}, Path(), Path(), 1, 1)
    with pytest.raises(ValueError, match=r"embed: sslzoo gives other numbers, by 0\.1 of the largest"):
        embed.measure(job, embed.TASKS[0], 1)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_embed_end_to_end(capsys):
    assert embed.main(["--repeats", "1", "--images", "8", "--batch-size", "4"]) == 0
    output = capsys.readouterr().out
    assert output.count("transformers' pipeline") == 2
    assert output.count("\nsslzoo ") == 2
